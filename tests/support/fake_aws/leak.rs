//! The forms of a secret that a text must not have: the secret itself, and whatever the layers of a
//! Kubernetes Secret make of it.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;

use super::SECRET_MARKER;

/// The form in which the marker, or the start of a password, stands in `text`.
pub(super) fn find(text: &str, passwords: &[String]) -> Option<String> {
    let mut forms = vec![("the secret".to_owned(), SECRET_MARKER.to_owned())];
    let mut layer = vec![SECRET_MARKER.to_owned()];
    for depth in 1..=4 {
        layer = layer.iter().flat_map(|form| encoded_forms(form)).collect();
        let name = format!("{depth} × base64 of a secret");
        forms.extend(layer.iter().map(|form| (name.clone(), form.clone())));
        if depth == 1 {
            forms.extend(
                layer
                    .iter()
                    .map(|form| ("the bytes of a secret".to_owned(), byte_list(form))),
            );
        }
    }
    let start_of = |password: &String| password[..32.min(password.len())].to_owned();
    forms.extend(
        passwords
            .iter()
            .map(|password| ("the start of a password".to_owned(), start_of(password))),
    );
    forms
        .into_iter()
        .find_map(|(name, form)| text.contains(&form).then_some(name))
}

/// Returns the forms of `text` within base64: one for each place that the text can have in a group
/// of three bytes.
fn encoded_forms(text: &str) -> [String; 3] {
    [0, 1, 2].map(|before| {
        let encoded = BASE64_STANDARD_NO_PAD.encode([&vec![0; before], text.as_bytes()].concat());
        // Characters that mix in what stands before or after depend on it.
        let first = (before * 8).div_ceil(6);
        let last = (before + text.len()) * 8 / 6;
        encoded[first..last].to_owned()
    })
}

fn byte_list(text: &str) -> String {
    let bytes: Vec<_> = text.bytes().map(|byte| byte.to_string()).collect();
    bytes.join(", ")
}

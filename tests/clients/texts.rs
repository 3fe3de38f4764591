//! The texts of docs/how-to/troubleshooting.md that clients of registries write: skopeo has the library with which CRI-O
//! and podman pull.

use serde_json::json;

use super::bed::{Bed, R, installed};
use crate::support::registry::{ABSENT, FORBIDDEN, STALE};
use crate::support::shows;

/// Returns what skopeo writes about an image that it can't have.
async fn inspected(bed: &Bed, repository: &str) -> String {
    let image = format!("docker://{R}/{repository}:v1");
    bed.client(&installed("skopeo"), &["inspect", &image])
        .await
        .failed()
        .err
}

#[tokio::test]
async fn skopeo_shows_the_words_of_ecr() {
    let bed = Bed::start();
    for (repository, heading) in [
        (
            STALE,
            "`Your authorization token has expired. Reauthenticate and try again.`",
        ),
        (
            FORBIDDEN,
            "`is not authorized to perform: ecr:BatchGetImage on resource`",
        ),
        (
            ABSENT,
            "`name unknown: The repository with name … does not exist in the registry with id`",
        ),
    ] {
        shows(heading, &inspected(&bed, repository).await);
    }
    bed.configure(&json!({}));
    let heading = "`unauthorized: authentication required`";
    shows(heading, &inspected(&bed, "shop/web").await);
}

#[tokio::test]
async fn client_says_that_the_helper_is_not_in_its_path() {
    let bed = Bed::start();
    bed.configure(&json!({"credHelpers": {R: "nowhere"}}));
    let heading = "`error getting credentials`";
    shows(heading, &inspected(&bed, "shop/web").await);
}

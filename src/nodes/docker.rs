//! The protocol of docker's credential helpers: arguments, input, answers.
//!
//! Clients compare some of the texts with their own, so these are the protocol's to the byte. The
//! answer stands on standard output also where it is an error.

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Map;
use zeroize::Zeroizing;

use crate::{
    registry::{Aliases, Host, Registry},
    telemetry::printable::printable,
    token::USER,
};

/// The name of the helper, in texts.
pub const PROGRAM: &str = "docker-credential-ecr-injector";
/// The answer for a server that has no credentials: clients go on without any. They compare the
/// whole text.
pub const NOT_FOUND: &str = "credentials not found in native keychain\n";
/// The answer if no server is given.
pub const NO_SERVER: &str = "no credentials server URL\n";
/// The answer if a login has no user.
pub const NO_USER: &str = "no credentials username\n";
/// How the helper is called.
pub const USAGE: &str = "Usage: docker-credential-ecr-injector <get|list|store|erase|version>\n";
/// The note for a call that is meant for the kubelet's plugin.
pub const FOR_THE_KUBELET: &str =
    "this is the docker helper; as the kubelet's plugin use ecr-credential-provider";
/// The answer to a login that is no JSON.
const NOT_A_LOGIN: &str =
    "the input is not a JSON object with the texts ServerURL, Username and Secret\n";
/// The longest server that a text shows, in characters.
const MAX_SHOWN: usize = 120;

/// A call of the helper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// `get`: the credentials of a server.
    Get,
    /// `store`: what `docker login` wants to be kept.
    Store,
    /// `erase`: what `docker logout` wants to be forgotten.
    Erase,
    /// `list`: the servers that have credentials.
    List,
    /// The version.
    Version,
    /// How the helper is called, as somebody asked.
    Help,
    /// How the helper is called, as it was called otherwise.
    Usage,
    /// An action that there isn't.
    Unknown(String),
}

impl Call {
    /// Returns the call that these arguments make, without the program's name.
    #[must_use]
    pub fn parse(arguments: &[String]) -> Self {
        let [action] = arguments else {
            return Self::Usage;
        };
        match action.as_str() {
            "get" => Self::Get,
            "store" => Self::Store,
            "erase" => Self::Erase,
            "list" => Self::List,
            "version" | "--version" | "-v" => Self::Version,
            "help" | "--help" | "-h" => Self::Help,
            other => Self::Unknown(shown(other)),
        }
    }
}

/// Returns the answer to `version`.
#[must_use]
pub fn version() -> String {
    let (package, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    format!("{PROGRAM} ({package}) v{version}\n")
}

/// Returns the answer to an action that there isn't.
#[must_use]
pub fn unknown_action(action: &str) -> String {
    format!("{PROGRAM}: unknown action: {action}\n")
}

/// Returns whether the input is the kubelet's.
#[must_use]
pub fn is_for_the_kubelet(input: &str) -> bool {
    input.trim_start().starts_with('{') && input.contains("CredentialProviderRequest")
}

/// Returns the server of an input, or `None` if there is none: its lines joined, as the protocol's
/// own reader does.
#[must_use]
pub fn server(input: &str) -> Option<String> {
    let joined: String = input.lines().collect();
    let server = joined.trim();
    (!server.is_empty()).then(|| server.to_owned())
}

/// Returns a server as a text shows it: without a user and a password.
#[must_use]
pub fn shown(server: &str) -> String {
    let server = server.rsplit('@').next().unwrap_or_default();
    let short: String = server.chars().take(MAX_SHOWN).collect();
    let end = if short.len() < server.len() {
        "…"
    } else {
        ""
    };
    printable(&short).into_owned() + end
}

/// Returns the host by which a server's token is kept, and the registry, or `None` if the server is
/// none of ours. An alias is looked up with the server's port and then without one; the port of a
/// registry of ECR makes no other registry.
#[must_use]
pub fn resolve(server: &str, aliases: &Aliases) -> Option<(Host, Registry)> {
    let host = host(server)?;
    let alias = aliases.resolve(host.as_str());
    let alias = alias.filter(|(host, registry)| host != registry.host());
    let name = host.as_str().split(':').next()?;
    alias.or_else(|| aliases.resolve(name))
}

/// Returns the host of a server, which may be a URL or have a path.
fn host(server: &str) -> Option<Host> {
    let without_scheme = server
        .strip_prefix("https://")
        .or_else(|| server.strip_prefix("http://"));
    let rest = without_scheme.unwrap_or(server);
    Host::parse(rest.split('/').next()?)
}

/// Returns the answer to `get`.
#[must_use]
pub fn credentials(server: &str, password: &SecretString) -> Zeroizing<String> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Credentials<'a> {
        #[serde(rename = "ServerURL")]
        server_url: &'a str,
        username: &'a str,
        secret: &'a str,
    }
    let credentials = Credentials {
        server_url: server,
        username: USER,
        secret: password.expose_secret(),
    };
    // Texts always serialize.
    let json = serde_json::to_string(&credentials).unwrap_or_default();
    let mut json = Zeroizing::new(json);
    json.push('\n');
    json
}

/// Returns the answer to `list`.
#[must_use]
pub fn list<'a>(hosts: impl IntoIterator<Item = &'a str>) -> String {
    let mut servers: Vec<String> = hosts.into_iter().map(|h| format!("https://{h}")).collect();
    servers.sort_unstable();
    let servers = servers.into_iter().map(|server| (server, USER.into()));
    let servers: Map<_, _> = servers.collect();
    serde_json::Value::Object(servers).to_string() + "\n"
}

/// Returns the server of a login, or the answer to one that isn't whole.
pub fn login(input: &str) -> Result<String, &'static str> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Login {
        #[serde(rename = "ServerURL", default)]
        server_url: String,
        #[serde(default)]
        username: String,
    }
    let login: Login = serde_json::from_str(input).map_err(|_| NOT_A_LOGIN)?;
    match (login.server_url.trim(), login.username.trim()) {
        ("", _) => Err(NO_SERVER),
        (_, "") => Err(NO_USER),
        (server, _) => Ok(server.to_owned()),
    }
}

/// Returns the answer to a login or a logout that can't be followed.
#[must_use]
pub fn stores_none(server: &str, is_ours: bool) -> String {
    let server = shown(server);
    let advice = if is_ours {
        format!("gets tokens by itself and stores none: no docker login is needed for {server}")
    } else {
        format!(
            "stores no logins and has the credentials of ECR alone: for a login at {server} name ECR's hosts in \
             credHelpers instead of credsStore"
        )
    };
    format!(
        "ecr-injector {advice}. To let docker login pass, set AWS_ECR_IGNORE_CREDS_STORAGE=true\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

    fn aliases() -> Aliases {
        let registry = |host: &str| Registry::parse(host).expect("a registry");
        let pairs = [
            ("mirror.example".to_owned(), registry(R)),
            (
                "mirror.example:5000".to_owned(),
                registry(&R.replace("eu-west-1", "us-east-1")),
            ),
        ];
        Aliases::new(pairs).expect("aliases").with_public()
    }

    #[test]
    fn arguments_make_one_call() {
        for (arguments, expected) in [
            (&[][..], Call::Usage),
            (&["get"], Call::Get),
            (&["get", "x"], Call::Usage),
            (&["-v"], Call::Version),
            (&["help"], Call::Help),
            (&["Get"], Call::Unknown("Get".to_owned())),
            (&["a\nb"], Call::Unknown("a\\nb".to_owned())),
            (&[""], Call::Unknown(String::new())),
        ] {
            let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
            assert_eq!(Call::parse(&arguments), expected, "{arguments:?}");
        }
    }

    #[test]
    fn answers_without_a_server_name_the_helper() {
        let expected = "docker-credential-ecr-injector (ecr-injector) v";
        assert!(version().starts_with(expected), "{}", version());
        let expected = "docker-credential-ecr-injector: unknown action: Get\n";
        assert_eq!(unknown_action("Get"), expected);
    }

    #[test]
    fn server_is_found_in_all_that_clients_send() {
        let forms = [
            "R",
            "https://R",
            "http://R",
            "R/",
            "R/shop/web",
            "https://R/v2/",
            "R:443",
            "https://R:443",
            "http://R:443/x",
        ];
        for form in forms {
            let server = form.replace('R', R);
            let (host, registry) = resolve(&server, &aliases()).expect(&server);
            assert_eq!(
                (host.as_str(), registry.region().as_str()),
                (R, "eu-west-1")
            );
        }
        assert_eq!(server(" R\r\n").as_deref(), Some("R"));
        assert_eq!(server("R\nx\n").as_deref(), Some("Rx"));
        assert_eq!(server(" \r\n\n"), None);
    }

    #[test]
    fn alias_is_found_with_its_port_first() {
        let region = |server: &str| {
            let (host, registry) = resolve(server, &aliases())?;
            Some((host.to_string(), registry.region().to_string()))
        };
        let found = |host: &str, region: &str| Some((host.to_owned(), region.to_owned()));
        assert_eq!(
            region("https://mirror.example/x"),
            found("mirror.example", "eu-west-1")
        );
        assert_eq!(
            region("mirror.example:443"),
            found("mirror.example", "eu-west-1")
        );
        assert_eq!(
            region("mirror.example:5000"),
            found("mirror.example:5000", "us-east-1")
        );
        assert_eq!(
            region("public.ecr.aws:443"),
            found("public.ecr.aws", "us-east-1")
        );
    }

    #[test]
    fn other_servers_are_none_of_ours() {
        for server in [
            "",
            "ghcr.io",
            "https://index.docker.io/v1/",
            "R.example",
            "x/R",
            "a@R",
            "https://a:b@R",
            "R.",
            "R?x",
            "R x",
            "R:0443",
            "R:x",
            "R:443:443",
            "HTTPS://R",
            "ftp://R",
            "https:///R",
            "https://https://R",
        ] {
            let server = server.replace('R', R);
            assert_eq!(resolve(&server, &aliases()), None, "{server:?}");
        }
        assert_eq!(resolve(&R.to_uppercase(), &aliases()), None);
        assert_eq!(resolve("public.ecr.aws", &Aliases::default()), None);
    }

    #[test]
    fn answers_are_the_protocols_to_the_byte() {
        let answer = credentials("https://R/\"", &"p&<".to_owned().into());
        assert_eq!(
            *answer,
            "{\"ServerURL\":\"https://R/\\\"\",\"Username\":\"AWS\",\"Secret\":\"p&<\"}\n"
        );
        assert_eq!(list([]), "{}\n");
        assert_eq!(
            list(["b.example", "a.example"]),
            "{\"https://a.example\":\"AWS\",\"https://b.example\":\"AWS\"}\n"
        );
    }

    #[test]
    fn login_without_server_or_user_is_not_whole() {
        let whole = r#"{"ServerURL":" R ","Username":"me","Secret":"x"}"#;
        assert_eq!(login(whole).as_deref(), Ok("R"));
        for (input, expected) in [
            (r#"{"Username":"me"}"#, NO_SERVER),
            (r#"{"ServerURL":"R","Username":" "}"#, NO_USER),
            (r#"{"ServerURL":"R"}"#, NO_USER),
            (r#"{"ServerURL":1}"#, NOT_A_LOGIN),
            ("R", NOT_A_LOGIN),
            ("", NOT_A_LOGIN),
        ] {
            assert_eq!(login(input), Err(expected), "{input:?}");
        }
    }

    #[test]
    fn request_of_the_kubelet_is_recognized() {
        assert!(is_for_the_kubelet(
            " {\"kind\":\"CredentialProviderRequest\"}"
        ));
        assert!(!is_for_the_kubelet("CredentialProviderRequest"));
        assert!(!is_for_the_kubelet("{}"));
    }

    #[test]
    fn long_server_is_shown_in_part_and_on_one_line() {
        let text = stores_none(&format!("a\n{}", "x".repeat(500)), true);
        assert!(text.len() < 400 && text.lines().count() == 1, "{text}");
        assert!(text.contains("a\\nxxx") && text.contains('…'));
        assert!(!stores_none("https://me:hunter2@R", false).contains("hunter2"));
    }
}

//! Whose token is answered: rules, roles and profiles, and temporary credentials that the cache
//! outlasts.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::SeqCst};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::command::{Machine, R};
use crate::support::FakeAws;
use crate::support::fake_aws::metadata::{ContainerCredentials, InstanceMetadata};
use crate::support::fake_aws::{Keys, USER};
use crate::support::own_runtime::OwnRuntime;

const ROLE: &str = "arn:aws:iam::111122223333:role/ecr-pull";

fn host(account: &str) -> String {
    R.replace("210987654321", account)
}

/// D-40.
#[tokio::test]
async fn rules_choose_the_role_or_the_profile() {
    let aws = FakeAws::start();
    let prod = "arn:aws:iam::444455556666:user/prod";
    let keys = aws.keys_of(prod);
    let profiles = format!(
        "[prod]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        keys.access_key, keys.secret_access_key
    );
    let config = format!(
        "identities:\n- accounts: [\"111122223333\"]\n  assumeRole: {{roleArn: \"{ROLE}\"}}\n\
         - accounts: [\"444455556666\"]\n  profile: prod\n"
    );
    let machine = Machine::with_keys(&aws)
        .file("AWS_SHARED_CREDENTIALS_FILE", &profiles)
        .config(&config);
    for (account, principal, calls) in [
        ("111122223333", ROLE, 2),
        ("444455556666", prod, 1),
        ("210987654321", USER, 1),
    ] {
        aws.clear();
        let host = host(account);
        machine.get(&host).await.answered(&aws, &host);
        let password = aws.passwords().pop().unwrap();
        assert_eq!(aws.principal_of(&password).as_deref(), Some(principal));
        assert_eq!(aws.calls().len(), calls, "{account}");
        aws.clear();
        machine.get(&host).await.answered(&aws, &host);
        assert!(aws.calls().is_empty(), "{account}");
    }
    // A role's token isn't written by the key that assumed it.
    let text = fs::read_to_string(machine.cache().join("cache.json")).unwrap();
    assert!(
        !text.contains("111122223333"),
        "a role's token is the user's"
    );
}

/// D-41.
#[tokio::test]
async fn alias_gets_the_token_of_its_registry() {
    let aws = FakeAws::start();
    let config = format!("aliases:\n- host: images.example.com\n  registry: {R}\n");
    let machine = Machine::with_keys(&aws).config(&config);
    for server in ["images.example.com", "https://images.example.com:443/v2/"] {
        machine.get(server).await.answered(&aws, server);
    }
    assert_eq!(aws.ecr_calls("eu-west-1").len(), 1);
    machine.get("other.example.com").await.not_found();
    // The file says whether the gallery gets tokens.
    machine.get("public.ecr.aws").await.not_found();
    let machine = machine.config("publicEcr: true");
    machine
        .get("public.ecr.aws")
        .await
        .answered(&aws, "public.ecr.aws");
}

/// D-42.
#[tokio::test]
async fn rules_for_namespaces_are_skipped() {
    let aws = FakeAws::start();
    let config =
        format!("identities:\n- namespaces: [team-a]\n  assumeRole: {{roleArn: \"{ROLE}\"}}\n");
    let machine = Machine::with_keys(&aws)
        .config(&config)
        .set("AWS_ECR_DISABLE_CACHE", "1");
    let run = machine.get(R).await;
    run.answered(&aws, R);
    assert_eq!(run.err, "");
    assert_eq!(aws.calls_to("sts").len(), 0);
    let run = machine.set("ECR_INJECTOR_LOG", "debug").get(R).await;
    assert!(run.err.contains("identities[0] is skipped"), "{run:#?}");
}

#[tokio::test]
async fn mistake_in_the_configuration_hands_out_no_other_principal() {
    let aws = FakeAws::start();
    for config in [
        "identities:\n- role: x\n".to_owned(),
        "identities:\n- assumeRole: {roleArn: \"arn:aws:iam::111122223333:role/{namespace}\"}\n"
            .to_owned(),
        "identities:\n- profile: absent\n".to_owned(),
    ] {
        let machine = Machine::with_keys(&aws).config(&config);
        let run = machine.get(R).await;
        assert_eq!(run.code, Some(1), "{run:#?}");
        assert!(!run.err.is_empty(), "{run:#?}");
        // docker goes on with other registries all the same.
        assert_eq!(run.out, super::command::NOT_FOUND);
    }
    let machine = Machine::with_keys(&aws).set("ECR_INJECTOR_CONFIG", "/absent");
    machine.get(R).await.failed_with(&["/absent"]);
    assert!(aws.calls().is_empty());
}

/// Twice: the second run calls nobody. Then again with one changed profile.
async fn hits_once(machine: &Machine<'_>, others: impl Fn() -> usize) {
    let aws = machine.aws;
    machine.get(R).await.answered(aws, R);
    let (calls, visits) = (aws.calls().len(), others());
    machine.get(R).await.answered(aws, R);
    assert_eq!((aws.calls().len(), others()), (calls, visits));
    let cache = fs::read_to_string(machine.cache().join("cache.json"));
    assert!(
        cache.is_err(),
        "a session's token is written by no access key"
    );
}

/// D-23.
#[tokio::test]
async fn assumed_role_of_a_profile_hits_without_any_call() {
    let aws = FakeAws::start();
    let keys = aws.keys_of("arn:aws:iam::123456789012:user/base");
    let profiles = |session: &str| {
        format!(
            "[profile pull]\nrole_arn = {ROLE}\nsource_profile = base\nrole_session_name = {session}\n\
             [profile base]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            keys.access_key, keys.secret_access_key
        )
    };
    let machine = Machine::without_credentials(&aws)
        .file("AWS_CONFIG_FILE", &profiles("one"))
        .set("AWS_PROFILE", "pull");
    hits_once(&machine, || 0).await;
    assert_eq!(
        (aws.calls_to("sts").len(), aws.calls_to("ecr").len()),
        (1, 1)
    );

    // D-24: the text of the section is another.
    let machine = machine.file("AWS_CONFIG_FILE", &profiles("two"));
    machine.get(R).await.answered(&aws, R);
    assert_eq!(aws.calls_to("ecr").len(), 2);
    let machine = machine.set("AWS_PROFILE", "base");
    machine.get(R).await.answered(&aws, R);
    assert_eq!(aws.calls_to("ecr").len(), 3);
}

/// D-23.
#[tokio::test]
async fn pod_identity_hits_without_any_call() {
    let aws = FakeAws::start();
    let agent = ContainerCredentials::start(&aws, "pod");
    let machine = Machine::without_credentials(&aws)
        .set("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent.uri())
        .file("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "a token");
    hits_once(&machine, || agent.visits().len()).await;
    assert_eq!(agent.visits().len(), 1);
}

/// D-23.
#[tokio::test]
async fn instance_metadata_hits_without_any_call() {
    let aws = FakeAws::start();
    let metadata = InstanceMetadata::start(&aws, "node");
    let machine = Machine::without_credentials(&aws)
        .unset("AWS_EC2_METADATA_DISABLED")
        .variables(metadata.environment());
    hits_once(&machine, || metadata.visits().len()).await;
    assert!(!metadata.visits().is_empty());
}

/// The portal of IAM Identity Center, which gives the sessions of roles for a login.
struct Portal {
    url: String,
    room: Arc<Room>,
    _runtime: OwnRuntime,
}

struct Room {
    keys: Keys,
    visits: AtomicUsize,
    /// Of an answer without a session; zero while there are sessions.
    status: AtomicU16,
}

const LOGIN: &str = "the-login";
const LOGGED_OUT: &str = r#"{"__type": "com.amazonaws.switchboard.portal#UnauthorizedException",
    "message": "Session token not found or invalid"}"#;

impl Portal {
    fn start(keys: Keys) -> Self {
        async fn answer(State(room): State<Arc<Room>>, headers: HeaderMap) -> (StatusCode, String) {
            assert_eq!(headers["x-amz-sso_bearer_token"], LOGIN);
            room.visits.fetch_add(1, SeqCst);
            let status = room.status.load(SeqCst);
            if status != 0 {
                let error = if status == 401 { LOGGED_OUT } else { "" };
                return (StatusCode::from_u16(status).unwrap(), error.to_owned());
            }
            let keys = &room.keys;
            let session = json!({"roleCredentials": {
                "accessKeyId": keys.access_key,
                "secretAccessKey": keys.secret_access_key,
                "sessionToken": keys.session_token,
                "expiration": keys.expires_at.unwrap().as_millisecond(),
            }});
            (StatusCode::OK, session.to_string())
        }
        let room = Arc::new(Room {
            keys,
            visits: AtomicUsize::new(0),
            status: AtomicU16::new(0),
        });
        let runtime = OwnRuntime::start("sso-portal");
        let (listener, address) = runtime.listen("127.0.0.1:0");
        let router = Router::new().fallback(answer).with_state(Arc::clone(&room));
        runtime.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let service = TowerToHyperService::new(router.clone());
                tokio::spawn(async move {
                    let connection = TokioIo::new(connection);
                    let _ = http1::Builder::new()
                        .serve_connection(connection, service)
                        .await;
                });
            }
        });
        Self {
            url: format!("http://{address}"),
            room,
            _runtime: runtime,
        }
    }
}

/// D-23.
#[tokio::test]
async fn sso_profile_hits_without_any_call() {
    let aws = FakeAws::start();
    let role = "arn:aws:iam::123456789012:role/sso";
    let until = Timestamp::now() + SignedDuration::from_hours(8);
    let portal = Portal::start(aws.session_of(role, until));
    let profile = "[default]\nsso_start_url = https://corp.awsapps.com/start\nsso_region = eu-west-1\n\
                   sso_account_id = 123456789012\nsso_role_name = sso\n";
    let machine = Machine::without_credentials(&aws)
        .file("AWS_CONFIG_FILE", profile)
        .set("AWS_ENDPOINT_URL_SSO", &portal.url);
    let folder = machine.home().join(".aws/sso/cache");
    fs::create_dir_all(&folder).unwrap();
    let login = json!({"accessToken": LOGIN, "expiresAt": until.to_string()});
    // The SHA-1 of the start URL.
    let name = "a51746d4aa793ae07b25e90c3a5db96fc7832bd7.json";
    fs::write(folder.join(name), login.to_string()).unwrap();
    hits_once(&machine, || portal.room.visits.load(SeqCst)).await;
    assert_eq!(portal.room.visits.load(SeqCst), 1);

    // The portal is away, and then the login is over: the token is good for half of its life, and
    // then only while nobody says that there is none.
    portal.room.status.store(500, SeqCst);
    machine.get(R).await.answered(&aws, R);
    machine.age(SignedDuration::from_hours(6));
    machine.get(R).await.answered(&aws, R);
    portal.room.status.store(401, SeqCst);
    machine
        .get(R)
        .await
        .failed_with(&["profile \"default\"", "aws sso login"]);
}

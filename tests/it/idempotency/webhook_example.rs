//! The example `webhook`: what it lets through, and how often it handles that.

use std::process::Command;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_distributed_lock::LockManager;

use crate::servers::{axum_on, client};
use crate::support::{RedisServer, minute, soon};
use crate::webhook::{Secret, app, curl, now};

const WORK: Duration = Duration::from_secs(2);

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

const OTHER_SECRET: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fn in_memory() -> Router {
    app(&LockManager::in_memory(), secret(SECRET), WORK)
}

fn secret(text: &str) -> Secret {
    Secret::parse(text).ok().unwrap()
}

fn event(timestamp: u64, signatures: &str) -> Request<Body> {
    event_of("evt_1", &timestamp.to_string(), signatures, "{}")
}

fn event_of(id: &str, timestamp: &str, signatures: &str, body: &str) -> Request<Body> {
    Request::post("/webhooks")
        .header("webhook-id", id)
        .header("webhook-timestamp", timestamp)
        .header("webhook-signature", signatures)
        .body(Body::from(body.to_owned()))
        .unwrap()
}

fn signature(secret_text: &str, timestamp: u64) -> String {
    secret(secret_text).sign("evt_1", &timestamp.to_string(), b"{}")
}

/// A delivery as the sender makes it.
fn delivery() -> Request<Body> {
    let timestamp = now();
    event(timestamp, &signature(SECRET, timestamp))
}

struct Answer {
    status: StatusCode,
    is_replayed: bool,
    body: String,
}

impl Answer {
    async fn of<B>(response: Response<B>) -> Self
    where
        B: http_body::Body<Error: std::fmt::Debug>,
    {
        let body = response.headers().get("idempotent-replayed").cloned();
        let is_replayed = body.is_some();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Self {
            status,
            is_replayed,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    fn assert_handled(&self, is_replayed: bool) {
        assert_eq!(self.status, StatusCode::OK);
        assert_eq!(self.body, "event evt_1: handled in run 1\n");
        assert_eq!(self.is_replayed, is_replayed);
    }
}

async fn send(app: &Router, request: Request<Body>) -> Answer {
    Answer::of(app.clone().oneshot(request).await.unwrap()).await
}

#[tokio::test(start_paused = true)]
async fn a_delivery_is_handled_and_its_duplicate_gets_the_same_answer() {
    let app = in_memory();
    send(&app, delivery()).await.assert_handled(false);
    send(&app, delivery()).await.assert_handled(true);
}

#[tokio::test(start_paused = true)]
async fn of_two_deliveries_at_once_one_is_handled() {
    let app = in_memory();
    // The clock stands still until both have come as far as they can.
    let (one, two) = tokio::join!(send(&app, delivery()), send(&app, delivery()));
    one.assert_handled(false);
    assert_eq!(two.status, StatusCode::CONFLICT);
    send(&app, delivery()).await.assert_handled(true);
}

#[tokio::test(start_paused = true)]
async fn what_the_sender_did_not_sign_is_refused_and_does_not_use_up_the_id() {
    let app = in_memory();
    let time = now();
    let right = signature(SECRET, time);
    for signatures in [
        "",
        "v1,",
        "v1,AAAA",
        &signature(OTHER_SECRET, time),
        // A signature of another time; then without its version, with another version, cut off, and
        // with something behind it.
        &signature(SECRET, time - 1),
        &right[3..],
        &right.replace("v1", "v1a"),
        &right[..right.len() - 4],
        &format!("{right}AAAA"),
    ] {
        let answer = send(&app, event(time, signatures)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{signatures:?}");
    }
    for missing in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        let mut request = delivery();
        request.headers_mut().remove(missing);
        let answer = send(&app, request).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "without {missing}");
    }
    let mut changed = delivery();
    *changed.body_mut() = Body::from("{ }");
    assert_eq!(
        send(&app, changed).await.status,
        StatusCode::UNAUTHORIZED,
        "another body"
    );
    send(&app, delivery()).await.assert_handled(false);
    // Nor does an unsigned duplicate get the response.
    let answer = send(&app, event(time, "v1,AAAA")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_could_not_be_handled_may_come_again() {
    let app = in_memory();
    let (time, no_text) = (now(), b"\xff");
    let signature = secret(SECRET).sign("evt_1", &time.to_string(), no_text);
    let mut request = event(time, &signature);
    *request.body_mut() = Body::from(&no_text[..]);
    let answer = send(&app, request).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    send(&app, delivery()).await.assert_handled(false);
}

#[tokio::test(start_paused = true)]
async fn a_delivery_from_another_time_is_refused() {
    let app = in_memory();
    // A minute more than the tolerance, as the clock may go on while this runs.
    for time in [now() - 360, now() + 360, 0, u64::MAX] {
        let answer = send(&app, event(time, &signature(SECRET, time))).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{time}");
    }
    let time = now() - 240;
    let late = send(&app, event(time, &signature(SECRET, time))).await;
    late.assert_handled(false);
}

/// The standard allows full stops where no user can choose the id.
#[tokio::test(start_paused = true)]
async fn an_id_may_have_full_stops() {
    let app = in_memory();
    let time = now().to_string();
    for id in [
        "evt.1",
        "evt.1.2",
        "order.2024-05-06.a",
        ".",
        "1731705121",
        "a.17317051210",
    ] {
        let signature = secret(SECRET).sign(id, &time, b"{}");
        for is_replayed in [false, true] {
            let answer = send(&app, event_of(id, &time, &signature, "{}")).await;
            assert_eq!(
                (answer.status, answer.is_replayed),
                (StatusCode::OK, is_replayed)
            );
            assert!(answer.body.starts_with(&format!("event {id}: ")));
        }
    }
}

/// An id, a time and a body are signed with full stops between them. At most one way to take that
/// text apart is let in.
#[tokio::test(start_paused = true)]
async fn a_signature_is_good_for_one_event_alone() {
    let (app, now) = (in_memory(), now());
    let texts = ["a", &now.to_string(), &(now + 1).to_string(), "1731705121"];
    let mut handled = 0;
    for number in 0..4_usize.pow(5) {
        let parts: Vec<&str> = (0..5).map(|at| texts[(number >> (2 * at)) % 4]).collect();
        let mut ways = 0;
        for at in 1..4 {
            let (id, time, body) = (parts[..at].join("."), parts[at], parts[at + 1..].join("."));
            let signature = secret(SECRET).sign(&id, time, body.as_bytes());
            let answer = send(&app, event_of(&id, time, &signature, &body)).await;
            ways += u32::from(answer.status == StatusCode::OK);
        }
        assert!(ways <= 1, "{parts:?}");
        handled += ways;
    }
    assert!(handled > 0);
    // A time that is written in another way is refused.
    for time in [format!("+{now}"), format!("0{now}")] {
        let signature = secret(SECRET).sign("a", &time, b"{}");
        let answer = send(&app, event_of("a", &time, &signature, "{}")).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{time}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_right_signature_among_several_is_enough() {
    let time = now();
    let right = signature(SECRET, time);
    let signatures = format!("v1a,AAAA {} {right}", signature(OTHER_SECRET, time));
    let answer = send(&in_memory(), event(time, &signatures)).await;
    answer.assert_handled(false);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_too_long_is_refused() {
    let mut request = delivery();
    *request.body_mut() = Body::from(vec![b'x'; 256 * 1024 + 1]);
    let answer = send(&in_memory(), request).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(start_paused = true)]
async fn a_payment_needs_a_key_and_the_same_payload() {
    let app = in_memory();
    let pay = async |key: &str, body: &'static str| {
        let mut request = Request::post("/payments").body(Body::from(body)).unwrap();
        if !key.is_empty() {
            let key = key.parse().unwrap();
            request.headers_mut().insert("idempotency-key", key);
        }
        send(&app, request).await
    };
    assert_eq!(pay("", "amount=100").await.status, StatusCode::BAD_REQUEST);
    let first = pay("order-42", "amount=100").await;
    let again = pay("order-42", "amount=100").await;
    assert_eq!((first.status, first.is_replayed), (StatusCode::OK, false));
    assert_eq!((again.status, again.is_replayed), (StatusCode::OK, true));
    assert_eq!(first.body, again.body);
    let other = pay("order-42", "amount=900").await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
}

/// The signature that Svix publishes: https://docs.svix.com/receiving/verifying-payloads/how-manual
#[test]
fn the_signature_is_the_published_one() {
    let signature = secret("whsec_plJ3nmyCDGBKInavdOK15jsl").sign(
        "msg_loFOjxBNrRLzqYUf",
        "1731705121",
        br#"{"event_type":"ping","data":{"success":true}}"#,
    );
    let published = "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0=";
    assert_eq!(signature, published);
}

#[test]
fn a_secret_that_anybody_could_have_is_refused() {
    for text in ["", "whsec_", "whsec_AAAA", "whsec_?", &SECRET[6..]] {
        assert!(Secret::parse(text).is_err(), "{text:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_printed_line_delivers_the_event() {
    let body = r#"{"note":"it's $HOME"}"#;
    let line = curl(&secret(SECRET), 3000, "evt_1", body);
    // The arguments that a shell passes on.
    let script = format!(r#"curl() {{ printf '%s\n' "$@"; }}; {line}"#);
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let arguments = String::from_utf8(output.stdout).unwrap();
    let arguments: Vec<&str> = arguments.lines().collect();
    let mut request = Request::post("/webhooks");
    for pair in arguments[2..].chunks(2) {
        request = match pair {
            ["-H", header] => {
                let (name, value) = header.split_once(": ").unwrap();
                request.header(name, value)
            }
            ["--data-raw", data] => {
                assert_eq!(*data, body);
                request
            }
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(
        arguments[..2],
        ["-i", "http://127.0.0.1:3000/webhooks"],
        "{line}"
    );
    let request = request.body(Body::from(body)).unwrap();
    send(&in_memory(), request).await.assert_handled(false);
}

#[tokio::test]
async fn two_nodes_handle_a_delivery_to_both_once() {
    let server = RedisServer::start().await;
    let client = client(Version::HTTP_11);
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let locks = minute().connect(&server.url()).await.unwrap();
        let app = app(&locks, secret(SECRET), Duration::from_millis(100));
        nodes.push(axum_on(app).await);
    }
    let send = async |node: usize| {
        let mut request = delivery();
        let url = format!("http://{}/webhooks", nodes[node]);
        *request.uri_mut() = url.parse().unwrap();
        let response = soon("the response", client.request(request)).await.unwrap();
        Answer::of(response).await
    };
    let (one, two) = tokio::join!(send(0), send(1));
    let (first, second) = match one.status == StatusCode::OK && !one.is_replayed {
        true => (one, two),
        false => (two, one),
    };
    first.assert_handled(false);
    // Unless this machine is too slow for that, it came while the first one ran.
    if second.status != StatusCode::CONFLICT {
        second.assert_handled(true);
    }
    for node in [0, 1] {
        send(node).await.assert_handled(true);
    }
}

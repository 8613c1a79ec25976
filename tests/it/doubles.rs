//! The test doubles themselves: a double that never objects would make other tests pass.

use std::time::Duration;

use futures_util::poll;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::{Service, ServiceExt};

use crate::nodes::Store;
use crate::strict::Strict;
use crate::support::random::Random;
use crate::support::{ClosedPort, Gate, Mode, Proxy, eventually, soon};

#[tokio::test]
#[should_panic(expected = "called without being ready")]
async fn a_strict_service_objects_to_a_clone_that_was_not_polled_ready() {
    let mut service = Strict::<()>::default();
    service.ready().await.unwrap();
    drop(service.clone().call(()));
}

#[tokio::test]
#[should_panic(expected = "called without being ready")]
async fn a_strict_service_objects_to_a_second_call_without_being_polled_ready_again() {
    let mut service = Strict::<()>::default();
    service.ready().await.unwrap();
    service.call(()).await.unwrap();
    drop(service.call(()));
}

on_every_store!(Store:
    managers_get_to_their_server_by_the_way_that_was_chosen
);

async fn managers_get_to_their_server_by_the_way_that_was_chosen(store: Store) {
    let _locks = store.locks().await;
    eventually("the server sees it", || store.is_reached_as_chosen()).await;
}

#[tokio::test]
async fn a_gate_lets_one_handler_pass_each_time_it_is_opened() {
    let gate = Gate::new();
    assert!(gate.nobody_else());
    let (mut one, mut two) = (Box::pin(gate.pass()), Box::pin(gate.pass()));
    assert!(poll!(&mut one).is_pending() && poll!(&mut two).is_pending());
    gate.arrived().await;
    assert!(!gate.nobody_else());
    gate.arrived().await;
    assert!(gate.nobody_else());
    gate.open();
    assert!(poll!(&mut one).is_ready() && poll!(&mut two).is_pending());
    gate.open();
    assert!(poll!(&mut two).is_ready());
}

#[tokio::test]
async fn a_closed_port_refuses_connections() {
    let closed = ClosedPort::new();
    let error = TcpStream::connect(("127.0.0.1", closed.port()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    // And no other test can listen there.
    assert!(
        TcpListener::bind(("127.0.0.1", closed.port()))
            .await
            .is_err()
    );
}

/// A connection through a proxy, and its end behind it.
async fn through_a_proxy() -> (Proxy, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap().port()).await;
    let client = TcpStream::connect(("127.0.0.1", proxy.port)).await.unwrap();
    let (server, _) = soon("the proxy connects", listener.accept()).await.unwrap();
    (proxy, client, server)
}

/// Sends a byte, and checks whether it comes.
async fn pass(from: &mut TcpStream, to: &mut TcpStream, comes: bool, mode: Mode) {
    from.write_all(b"x").await.unwrap();
    if comes {
        let byte = soon("the byte", to.read_u8()).await;
        assert_eq!(byte.unwrap(), b'x', "{mode:?}");
    } else {
        let byte = tokio::time::timeout(Duration::from_millis(50), to.read_u8()).await;
        assert!(byte.is_err(), "{mode:?}");
    }
}

#[tokio::test]
async fn a_proxy_keeps_back_what_it_is_told_to_and_no_more() {
    for (mode, requests, replies) in [
        (Mode::Forward, true, true),
        (Mode::Hold, false, false),
        (Mode::HoldAnswers, true, false),
        (Mode::HoldRequests, false, true),
        (Mode::First(1), true, true),
    ] {
        let (proxy, mut client, mut server) = through_a_proxy().await;
        proxy.set(mode);
        pass(&mut client, &mut server, requests, mode).await;
        pass(&mut server, &mut client, replies, mode).await;
        // What was kept back comes in the end.
        proxy.set(Mode::Forward);
        for (was_passed, end) in [(requests, &mut server), (replies, &mut client)] {
            if !was_passed {
                assert_eq!(soon("the rest", end.read_u8()).await.unwrap(), b'x');
            }
        }
    }
}

#[tokio::test]
async fn a_proxy_that_closes_ends_the_connections_on_both_sides() {
    let (proxy, mut client, mut server) = through_a_proxy().await;
    proxy.set(Mode::Close);
    for end in [&mut client, &mut server] {
        let read = soon("the end", end.read(&mut [0])).await;
        assert!(read.is_err() || read.is_ok_and(|length| length == 0));
    }
}

#[test]
fn random_numbers_follow_from_the_seed_and_the_place() {
    let draw = |mut random: Random| [(); 8].map(|()| random.next());
    assert_eq!(draw(Random::new(7)), draw(Random::new(7)));
    assert_ne!(draw(Random::new(7)), draw(Random::new(8)));
    assert_eq!(draw(Random::at(7, &[1, 2])), draw(Random::at(7, &[1, 2])));
    assert_ne!(draw(Random::at(7, &[1, 2])), draw(Random::at(7, &[2, 1])));
    let mut random = Random::new(7);
    for _ in 0..1000 {
        let time = random.millis(5, 8);
        assert!((Duration::from_millis(5)..Duration::from_millis(8)).contains(&time));
    }
}

//! The wire as nobody should use it. After each of these the server still serves.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use lamina_rpc::framing::{DEPTH_MAX, REQUEST_BYTES_MAX};
use lamina_rpc::methods::SpdkGetVersion;
use lamina_rpc::server::CONNECTIONS_MAX;
use serde_json::Value;

use crate::Daemon;

/// What a hostile client gets back.
fn answer_to(daemon: &Daemon, bytes: &[u8]) -> Vec<Value> {
    let stream = UnixStream::connect(&daemon.path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // The server may hang up before it has taken everything.
    match (&stream).write_all(bytes) {
        Ok(()) => {}
        Err(error) => assert!(
            matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset),
            "{error}"
        ),
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut reply = Vec::new();
    match (&stream).read_to_end(&mut reply) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    String::from_utf8(reply)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn assert_alive(daemon: &Daemon) {
    assert!(daemon.client().call(&SpdkGetVersion::default()).is_ok());
}

/// Waits until the server has noticed that its clients have gone.
fn wait_for_no_connection(daemon: &Daemon) {
    let begun = Instant::now();
    while daemon.server.connections() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "{}", daemon.server.connections());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn noise_is_answered_once_and_cut_off() {
    let daemon = Daemon::start();
    let deep = |open: &str| open.repeat(1 << 16).into_bytes();
    let large = |bytes: usize| format!("{{\"id\":1,\"method\":\"{}\"}}", "x".repeat(bytes));
    let cases: Vec<(&str, Vec<u8>, i64)> = vec![
        ("arrays without end", deep("["), -32600),
        ("objects without end", deep("{\"a\":"), -32600),
        ("mixed without end", deep("[{\"a\":"), -32600),
        ("a string too long", large(REQUEST_BYTES_MAX).into_bytes(), -32600),
        ("a string far too long", large(16 * REQUEST_BYTES_MAX).into_bytes(), -32600),
        ("a zero byte", b"\0".to_vec(), -32700),
        ("a zero byte in a string", b"{\"method\":\"a\0b\"}".to_vec(), -32700),
        ("a zero byte in an object", b"{\0}".to_vec(), -32700),
        ("HTTP", b"POST / HTTP/1.1\r\nHost: x\r\n\r\n{}".to_vec(), -32700),
        ("a wrong bracket", b"{\"method\":[}".to_vec(), -32700),
        ("not UTF-8", b"{\"method\":\"\xff\xfe\"}".to_vec(), -32700),
        ("a part of a request", b"{\"method\":\"spdk_get_version\",\"id\":1".to_vec(), -32700),
        ("a part of a string", b"\"abc".to_vec(), -32700),
        ("brackets but no JSON", b"{\"method\" \"x\"}".to_vec(), -32700),
    ];
    for (name, bytes, code) in cases {
        let replies = answer_to(&daemon, &bytes);
        // "POST" is a word that stands alone, and "/" is where it stops being JSON.
        assert_eq!(replies.len(), 1, "{name}: {replies:?}");
        assert_eq!(replies[0]["error"]["code"], code, "{name}: {replies:?}");
        assert_eq!(replies[0]["id"], Value::Null, "{name}");
        assert_alive(&daemon);
    }
    wait_for_no_connection(&daemon);
}

#[test]
fn what_is_large_or_deep_but_within_bounds_is_a_request() {
    let daemon = Daemon::start();
    let long = format!("{{\"id\":1,\"method\":\"{}\"}}", "\\u0000é".repeat(100_000));
    assert!(long.len() > 256 << 10 && long.len() < REQUEST_BYTES_MAX);
    let replies = answer_to(&daemon, long.as_bytes());
    assert_eq!(replies[0]["error"]["code"], -32601);
    assert!(replies[0].to_string().len() < 20_000, "the error repeats the start only");

    let levels = DEPTH_MAX as usize - 2;
    let deep = format!(
        "{{\"id\":1,\"method\":\"bdev_lvol_delete\",\"params\":{{\"name\":{}{}}}}}",
        "[".repeat(levels),
        "]".repeat(levels)
    );
    assert_eq!(answer_to(&daemon, deep.as_bytes())[0]["error"]["code"], -32602);

    let long_id = format!("{{\"id\":\"{}\",\"method\":\"spdk_get_version\"}}", "i".repeat(900_000));
    assert_eq!(answer_to(&daemon, long_id.as_bytes())[0]["id"].as_str().unwrap().len(), 900_000);
    assert_alive(&daemon);
}

#[test]
fn requests_before_the_noise_are_answered() {
    let daemon = Daemon::start();
    let replies = answer_to(&daemon, b"{\"id\":1,\"method\":\"spdk_get_version\"}\n}{\"id\":2}");
    assert_eq!(replies.len(), 2, "{replies:?}");
    assert_eq!(replies[0]["id"], 1);
    assert_eq!(replies[1]["error"]["code"], -32700);
}

#[test]
fn space_without_end_costs_nothing() {
    let daemon = Daemon::start();
    let mut bytes = vec![b' '; 8 << 20];
    bytes.extend_from_slice(b"{\"id\":1,\"method\":\"spdk_get_version\"}");
    assert_eq!(answer_to(&daemon, &bytes)[0]["id"], 1);
}

#[test]
fn a_hundred_clients_that_hold_their_place_are_bounded_and_told() {
    let daemon = Daemon::start();
    // Each has begun a request and never ends it.
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..100 {
        let mut stream = UnixStream::connect(&daemon.path).unwrap();
        // A refused one may be closed already.
        let _ = stream.write_all(b"{\"id\":1,\"method\":");
        held.push(stream);
    }
    let begun = Instant::now();
    for stream in &mut held[CONNECTIONS_MAX..] {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut reply = Vec::new();
        // Closed with our bytes unread, it ends in a reset after the reply.
        let _ = stream.read_to_end(&mut reply);
        let reply: Value = serde_json::from_slice(&reply).unwrap();
        assert_eq!(reply["error"]["code"], -11, "{reply}");
        assert!(reply["error"]["message"].as_str().unwrap().contains("64 connections"), "{reply}");
        refused += 1;
    }
    assert_eq!(refused, 100 - CONNECTIONS_MAX);
    assert!(begun.elapsed() < Duration::from_secs(5), "refused in a crowd, not one a second");
    assert_eq!(daemon.server.connections(), CONNECTIONS_MAX);
    // The first place that is free serves again.
    drop(held);
    wait_for_no_connection(&daemon);
    assert_alive(&daemon);
}

#[test]
fn a_crowd_of_short_clients_is_served() {
    let daemon = Daemon::start();
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let path = daemon.path.clone();
            std::thread::spawn(move || {
                let mut client = lamina_rpc::Client::connect(&path)?;
                client.call(&SpdkGetVersion::default())
            })
        })
        .collect();
    for client in clients {
        assert!(client.join().unwrap().is_ok());
    }
}

#[test]
fn a_client_that_vanishes_in_the_middle_is_forgotten() {
    let daemon = Daemon::start();
    for _ in 0..200 {
        let mut stream = UnixStream::connect(&daemon.path).unwrap();
        stream.write_all(b"{\"id\":1,\"method\":\"rpc_get_methods\"}{\"id\":2,").unwrap();
    }
    wait_for_no_connection(&daemon);
    assert_alive(&daemon);
}

#[test]
fn a_client_that_reads_nothing_holds_up_nobody() {
    let daemon = Daemon::start();
    let stream = UnixStream::connect(&daemon.path).unwrap();
    stream.set_nonblocking(true).unwrap();
    // Until neither its requests nor the replies to them fit anywhere any more.
    let request = b"{\"id\":1,\"method\":\"rpc_get_methods\"}".repeat(100);
    let begun = Instant::now();
    let mut written = 0;
    while begun.elapsed() < Duration::from_millis(500) {
        match (&stream).write(&request) {
            Ok(count) => written += count,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    assert!(written < 16 << 20, "the server takes no more than it can answer: {written}");
    assert_alive(&daemon);
    // And a stop does not wait for it either, beyond its bound.
    drop(stream);
    wait_for_no_connection(&daemon);
}

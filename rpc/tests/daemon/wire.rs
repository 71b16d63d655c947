//! The wire as honest clients use it: pipelines, pieces, half-closed streams, a server that stops.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lamina_rpc::methods::{LaminaCheckpoint, RpcGetMethods, SpdkGetVersion};
use lamina_rpc::schema::METHODS;
use lamina_rpc::server::ListenError;
use lamina_rpc::{Client, ClientError, Server};
use serde_json::{Value, json};

use crate::Daemon;
use crate::model::Model;

const VERSION: &str = r#"{"jsonrpc":"2.0","method":"spdk_get_version","id":1}"#;

#[test]
fn the_typed_client_and_the_server_agree() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    assert!(client.call(&SpdkGetVersion::default()).unwrap().version.starts_with("Lamina "));
    let names = client.call(&RpcGetMethods::default()).unwrap();
    assert_eq!(names, METHODS.iter().map(|info| info.name).collect::<Vec<_>>());
    let error = client.call_raw("no_such", &json!({})).unwrap_err();
    assert!(matches!(&error, ClientError::Rpc(error) if error.code == -32601), "{error}");
    // The connection is as good as before.
    assert!(client.call(&SpdkGetVersion::default()).is_ok());
}

#[test]
fn a_request_may_come_in_any_pieces() {
    let daemon = Daemon::start();
    let mut stream = UnixStream::connect(&daemon.path).unwrap();
    let mut replies = BufReader::new(stream.try_clone().unwrap());
    for at in 0..=VERSION.len() {
        let (head, tail) = VERSION.split_at(at);
        stream.write_all(head.as_bytes()).unwrap();
        // Long enough for the server to have read the first piece most times.
        std::thread::sleep(Duration::from_millis(1));
        stream.write_all(tail.as_bytes()).unwrap();
        let mut line = String::new();
        replies.read_line(&mut line).unwrap();
        assert!(line.contains("\"result\""), "cut at {at}: {line}");
    }
}

#[test]
fn many_requests_at_once_are_answered_in_order() {
    let daemon = Daemon::start();
    let mut stream = UnixStream::connect(&daemon.path).unwrap();
    let reader = std::thread::spawn({
        let stream = stream.try_clone().unwrap();
        move || {
            let ids: Vec<u64> = BufReader::new(stream)
                .lines()
                .map(|line| {
                    let reply: Value = serde_json::from_str(&line.unwrap()).unwrap();
                    reply["id"].as_u64().unwrap()
                })
                .collect();
            ids
        }
    });
    for id in 0..5000 {
        let separator = ["", " ", "\n", "\r\n\t"][id % 4];
        let request = format!(r#"{{"method":"spdk_get_version","id":{id}}}{separator}"#);
        stream.write_all(request.as_bytes()).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(reader.join().unwrap(), (0..5000).collect::<Vec<_>>());
}

#[test]
fn a_half_closed_stream_gets_answers_that_take_their_time() {
    let daemon = Daemon::start();
    daemon.model.hold(true);
    let mut stream = UnixStream::connect(&daemon.path).unwrap();
    stream.write_all(br#"{"method":"lamina_checkpoint","id":"slow"}"#).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    // Another client is not kept waiting by it.
    assert!(daemon.client().call(&SpdkGetVersion::default()).is_ok());
    std::thread::sleep(Duration::from_millis(50));
    daemon.model.hold(false);
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, "{\"jsonrpc\":\"2.0\",\"id\":\"slow\",\"result\":true}\n");
}

#[test]
fn a_stop_answers_the_call_in_hand_and_leaves_nothing() {
    let daemon = Daemon::start();
    daemon.model.hold(true);
    let idle = UnixStream::connect(&daemon.path).unwrap();
    let mut client = daemon.client();
    let caller = std::thread::spawn(move || client.call(&LaminaCheckpoint::default()));
    while daemon.model.calls.lock().unwrap().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let model = Arc::clone(&daemon.model);
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        model.hold(false);
    });
    let begun = Instant::now();
    daemon.server.stop();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(caller.join().unwrap().unwrap());
    release.join().unwrap();
    assert_eq!((&idle).read(&mut [0; 10]).unwrap(), 0);
    assert_eq!(std::fs::read_dir(daemon.folder.path()).unwrap().count(), 0);
    assert!(matches!(Client::connect(&daemon.path), Err(ClientError::Connect(..))));
}

#[test]
fn a_path_serves_one_server_at_a_time_and_the_next_after_it() {
    let daemon = Daemon::start();
    let error = Server::start(&daemon.path, Arc::new(Model::default())).unwrap_err();
    assert!(matches!(error, ListenError::InUse(..)), "{error}");
    assert!(daemon.client().call(&SpdkGetVersion::default()).is_ok());
    daemon.server.stop();
    let next = Server::start(&daemon.path, Arc::new(Model::default())).unwrap();
    assert!(Client::connect(&daemon.path).unwrap().call(&SpdkGetVersion::default()).is_ok());
    drop(next);
}

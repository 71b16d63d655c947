//! The envelope against a handler that says what it was asked.

use super::*;
use serde_json::json;

/// Answers every call with its own name and parameters; a disk named "missing" does not exist.
struct Echo;

impl Handler for Echo {
    fn call(&self, call: Call) -> Result<serde_json::Value, RpcError> {
        match &call {
            Call::BdevLvolDelete(params) if params.name == "missing" => {
                Err(RpcError::not_found("no disk \"missing\""))
            }
            Call::LaminaTree(_) => Ok(json!("x".repeat(REPLY_BYTES_MAX))),
            _ => Ok(json!(format!("{call:?}"))),
        }
    }
}

fn ask(text: &str) -> String {
    let answer = answer(text.as_bytes(), &Echo);
    assert!(!answer.hang_up, "{text}");
    String::from_utf8(answer.bytes).unwrap()
}

/// The code and the id of the error that `text` is answered with.
fn refusal(text: &str) -> (i64, serde_json::Value) {
    let reply: serde_json::Value = serde_json::from_str(&ask(text)).unwrap();
    assert!(reply.get("result").is_none(), "{reply}");
    assert_eq!(reply["error"].as_object().unwrap().len(), 2, "code and message, never data");
    (reply["error"]["code"].as_i64().unwrap(), reply["id"].clone())
}

#[test]
fn a_reply_is_compact_ends_in_a_newline_and_has_the_id_verbatim() {
    for id in ["1", "-0", "1.50e2", "18446744073709551616", r#""a\u0062\/""#, r#""""#] {
        let text = format!(r#"{{"jsonrpc":"2.0","id": {id} ,"method":"spdk_get_version"}}"#);
        let expected = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":\"SpdkGetVersion(SpdkGetVersion)\"}}\n"
        );
        assert_eq!(ask(&text), expected);
    }
}

#[test]
fn params_absent_null_and_empty_are_one() {
    let plain = ask(r#"{"id":1,"method":"bdev_get_bdevs"}"#);
    assert!(plain.contains("result"), "{plain}");
    for params in ["null", "{}", " { } "] {
        let text = format!(r#"{{"id":1,"params":{params},"method":"bdev_get_bdevs"}}"#);
        assert_eq!(ask(&text), plain);
    }
    assert_eq!(refusal(r#"{"id":1,"params":[],"method":"bdev_get_bdevs"}"#).0, -32602);
}

#[test]
fn a_notification_is_answered_only_when_it_fails() {
    assert_eq!(ask(r#"{"method":"bdev_get_bdevs"}"#), "");
    assert_eq!(ask(r#"{"method":"bdev_get_bdevs","id":null}"#), "");
    let failed = r#"{"method":"bdev_lvol_delete","params":{"name":"missing"}}"#;
    assert_eq!(refusal(failed), (-19, json!(null)));
}

#[test]
fn what_is_not_a_request_is_refused_with_its_id_where_there_is_one() {
    for (text, code, id) in [
        ("5", -32600, json!(null)),
        ("\"x\"", -32600, json!(null)),
        ("null", -32600, json!(null)),
        ("{}", -32600, json!(null)),
        (r#"{"id":7}"#, -32600, json!(7)),
        (r#"{"id":7,"method":5}"#, -32600, json!(7)),
        (r#"{"id":7,"method":null}"#, -32600, json!(7)),
        (r#"{"id":7,"method":"bdev_get_bdevs","jsonrpc":"1.0"}"#, -32600, json!(7)),
        (r#"{"id":7,"method":"bdev_get_bdevs","jsonrpc":2}"#, -32600, json!(7)),
        (r#"{"id":7,"method":"bdev_get_bdevs","extra":1}"#, -32600, json!(7)),
        (r#"{"id":7,"method":"bdev_get_bdevs","params":5}"#, -32600, json!(7)),
        (r#"{"id":7,"method":"bdev_get_bdevs","params":"x"}"#, -32600, json!(7)),
        (r#"{"id":7,"method":"a","method":"b"}"#, -32600, json!(7)),
        (r#"{"id":7,"id":8,"method":"bdev_get_bdevs"}"#, -32600, json!(null)),
        (r#"{"id":[7],"method":"bdev_get_bdevs"}"#, -32600, json!(null)),
        (r#"{"id":{},"method":"bdev_get_bdevs"}"#, -32600, json!(null)),
        (r#"{"id":true,"method":"bdev_get_bdevs"}"#, -32600, json!(null)),
        (r#"{"id":7,"method":"\ud800"}"#, -32600, json!(7)),
        (r#"{"id":7,"method":"no_such"}"#, -32601, json!(7)),
        (r#"{"id":7,"method":"bdev_lvol_delete"}"#, -32602, json!(7)),
        (r#"{"id":7,"method":"bdev_lvol_delete","params":["d"]}"#, -32602, json!(7)),
        (r#"{"id":7,"method":"bdev_lvol_delete","params":{"name":"d","x":1}}"#, -32602, json!(7)),
        (r#"{"id":7,"method":"bdev_lvol_delete","params":{"name":"missing"}}"#, -19, json!(7)),
    ] {
        assert_eq!(refusal(text), (code, id), "{text}");
    }
}

#[test]
fn what_is_not_json_ends_the_connection() {
    for noise in [&b"{\"id\":1,\"method\":tru}"[..], b"{\"a\" 1}", b"[1,]", b"\"\xff\"", b"01"] {
        let answer = answer(noise, &Echo);
        assert!(answer.hang_up);
        let reply: serde_json::Value = serde_json::from_slice(&answer.bytes).unwrap();
        assert_eq!(reply["error"]["code"], -32700);
        assert_eq!(reply["id"], json!(null));
    }
}

#[test]
fn a_batch_is_answered_by_one_array_in_order() {
    let reply = ask(concat!(
        r#"[{"id":1,"method":"spdk_get_version"},{"method":"spdk_get_version"},5,[],"#,
        r#"{"id":"b","method":"no_such"},{"method":"spdk_get_version"}]"#
    ));
    assert!(reply.ends_with("]\n"), "{reply}");
    let replies: Vec<serde_json::Value> = serde_json::from_str(&reply).unwrap();
    let seen: Vec<_> =
        replies.iter().map(|r| (r["id"].clone(), r["error"]["code"].clone())).collect();
    assert_eq!(
        seen,
        [
            (json!(1), json!(null)),
            (json!(null), json!(-32600)),
            (json!(null), json!(-32600)),
            (json!("b"), json!(-32601)),
        ]
    );
}

#[test]
fn batches_at_their_bounds() {
    assert_eq!(refusal("[]"), (-32600, json!(null)));
    assert_eq!(refusal("[ ]"), (-32600, json!(null)));
    assert_eq!(ask(r#"[{"method":"spdk_get_version"}]"#), "");
    let one = r#"{"method":"spdk_get_version"}"#;
    let most = vec![one; BATCH_CALLS_MAX].join(",");
    assert_eq!(ask(&format!("[{most}]")), "");
    assert_eq!(refusal(&format!("[{most},{one}]")), (-32600, json!(null)));
}

#[test]
fn an_answer_too_large_becomes_an_error() {
    assert_eq!(refusal(r#"{"id":3,"method":"lamina_tree"}"#), (-32603, json!(3)));
}

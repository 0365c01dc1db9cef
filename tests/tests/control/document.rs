//! `docs/openapi.json` is what the code has and what live programs answer.
//!
//! Its schemas forbid members that they do not name, and require all that they do: a member that is added to an answer,
//! or taken away, fails here until the document says so.

use std::collections::BTreeSet;

use backends::control::Method::{self, Get, Post, Put};
use backends::control::client::Client;
use backends::control::{Route, daemon};
use serde_json::{Value, json};
use tests::daemon::{Launch, binary};
use tests::machine::BLK;
use tests::vmm::Run;

use super::{DEVICES, PATIENCE, ask, boot, python};

/// The document, and (schema, instance) pairs; for each, what Debian's jsonschema finds wrong.
const VALIDATOR: &str = "
import json, sys
from jsonschema import Draft202012Validator as Validator
document, pairs = json.load(sys.stdin)
schemas = document['components']['schemas']
def whole(part):
    if isinstance(part, list):
        return [whole(one) for one in part]
    if not isinstance(part, dict):
        return part
    if '$ref' in part:
        return whole(schemas[part['$ref'].removeprefix('#/components/schemas/')])
    return {name: whole(one) for name, one in part.items()}
validators = {}
for name in {name for name, _ in pairs}:
    schema = whole(schemas[name])
    Validator.check_schema(schema)
    validators[name] = Validator(schema)
def wrong(name, instance):
    return [f'{error.json_path}: {error.message}' for error in validators[name].iter_errors(instance)]
json.dump([wrong(*pair) for pair in pairs], sys.stdout)
";

fn document() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// What is wrong with each of them by its schema.
fn validate(pairs: &[(&str, Value)]) -> Vec<Vec<String>> {
    let wrong = python(VALIDATOR, &[], json!([document(), pairs]).to_string().as_bytes());
    serde_json::from_value(wrong).unwrap()
}

#[track_caller]
fn assert_valid(pairs: &[(&str, Value)]) {
    for (wrong, (name, instance)) in validate(pairs).iter().zip(pairs) {
        assert!(wrong.is_empty(), "{name}: {wrong:#?} in {instance:#}");
    }
}

/// Methods and paths of the document that have this tag.
fn documented(tag: &str) -> BTreeSet<(String, String)> {
    let document = document();
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().iter();
        methods
            .map(move |(method, operation)| (method.to_uppercase(), path.clone(), operation["tags"].clone()))
    });
    let tagged = operations.filter(|(_, _, tags)| tags.as_array().unwrap().contains(&tag.into()));
    tagged.map(|(method, path, _)| (method, path)).collect()
}

fn in_code(routes: &[Route]) -> BTreeSet<(String, String)> {
    routes.iter().map(|route| (route.method.name().to_owned(), route.path.to_owned())).collect()
}

#[test]
fn the_document_has_the_routes_that_the_code_has() {
    assert_eq!(documented("daemon"), in_code(&daemon::ROUTES));
    assert_eq!(documented("blk"), in_code(&outboard_blk::graph::change::ROUTES));
    assert_eq!(documented("machine"), in_code(outboard::api::ROUTES));
    assert_eq!(document()["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn what_daemons_answer_is_what_the_document_says() {
    let mut pairs = Vec::new();
    for device in DEVICES {
        for options in [&[][..], &["--keeper", "off"]] {
            let mut machine = boot(device, options);
            pairs.push(("DaemonState", ask(&machine, Get, "/state", None).1));
            let mut ring = machine.start_queue().unwrap();
            machine.assert_serves(&mut ring);
            pairs.push(("DaemonState", ask(&machine, Get, "/state", None).1));
            pairs.push(("Settings", ask(&machine, Get, "/device", None).1));
            if device.binary == BLK.binary {
                pairs.push(("Graph", ask(&machine, Get, "/graph", None).1));
            }
            pairs.push(("Log", ask(&machine, Put, "/log", Some(&json!({ "level": "info" }))).1));
            let mut refused = |method: Method, path: &str, body: &Value| {
                let (status, error) = ask(&machine, method, path, Some(body));
                assert!((400..500).contains(&status), "{status} {error}");
                pairs.push(("Error", error));
            };
            refused(Put, "/device", &json!({ "x": 1 }));
            refused(Put, "/log", &json!({ "level": "loud" }));
            refused(Post, "/log/reopen", &json!({}));
            refused(Get, "/nothing", &json!({}));
        }
    }
    assert_valid(&pairs);
}

#[test]
fn what_a_machine_answers_is_what_the_document_says() {
    let daemon = Launch::new("outboard-rng").serve().unwrap();
    let run = Run::metal(binary("outboard"), "metal=hold").device("rng", daemon.socket());
    let socket = run.dir().join("vm.control");
    let vmm = run.option("--api-socket", &socket.display().to_string()).start();
    vmm.wait_for("metal: hold ready\n", 1);
    let mut client = Client::connect(&socket, PATIENCE).unwrap();
    let mut ask = |method, path| {
        let reply = client.call(method, path, None, None).unwrap();
        serde_json::from_slice::<Value>(&reply.body).unwrap()
    };
    assert_valid(&[
        ("MachineState", ask(Get, "/state")),
        ("MachineStanding", ask(Post, "/pause")),
        ("MachineState", ask(Get, "/state")),
        ("MachineStanding", ask(Post, "/resume")),
        ("Error", ask(Put, "/state")),
    ]);
}

/// Each value that the schema allows is taken, and one beyond it is not.
#[test]
fn what_the_document_lets_be_set_can_be_set() {
    let machine = boot(tests::machine::RNG, &[]);
    let limits = [
        (json!(null), true),
        (json!({ "bytes": 1 }), true),
        (json!({ "ops": u64::MAX, "bytes": null, "burst_ms": 60_000 }), true),
        (json!({ "ops": 0 }), false),
        (json!({ "bytes": 1, "burst_ms": 60_001 }), false),
        (json!({ "bytes": 1.5 }), false),
        (json!({ "rate": 1 }), false),
        (json!(7), false),
    ];
    for (limit, good) in &limits {
        let (status, answer) = ask(&machine, Put, "/device", Some(&json!({ "limit": limit })));
        assert_eq!(status, if *good { 200 } else { 422 }, "{answer}");
    }
    let settings: Vec<_> = limits.iter().map(|(limit, _)| ("Settings", json!({ "limit": limit }))).collect();
    for (wrong, (limit, good)) in validate(&settings).iter().zip(&limits) {
        assert_eq!(wrong.is_empty(), *good, "{limit}: {wrong:?}");
    }
    for level in ["error", "warn", "info", "debug", "trace"] {
        assert_eq!(ask(&machine, Put, "/log", Some(&json!({ "level": level }))).1["level"], level);
    }
    assert_eq!(ask(&machine, Put, "/log", Some(&json!({}))).0, 422);
}

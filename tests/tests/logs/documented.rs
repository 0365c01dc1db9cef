//! docs/logs.md says of every class what the code says.

use std::fmt::Write;

use backends::log::{Cause, Class};

#[test]
fn the_table_of_classes_is_the_code_s() {
    let mut table = String::from("| class | who can cause it | what it is about |\n|---|---|---|\n");
    for class in Class::ALL {
        let cause = match class.cause() {
            Cause::Guest => "guest",
            Cause::FrontEnd => "front-end",
            Cause::Peer => "peer",
            Cause::Client => "control client",
            Cause::Daemon => "daemon",
        };
        writeln!(table, "| `{}` | {cause} | {} |", class.name(), class.about()).unwrap();
    }
    let page = include_str!("../../../docs/logs.md");
    assert!(page.contains(&table), "docs/logs.md is stale; its table should be:\n{table}");
}

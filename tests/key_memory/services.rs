//! A key service behind TLS, whose answers have the keys as text: they are in the
//! buffers of TLS, HTTP and JSON for as long as a connection is kept, and not longer.

use serde_json::json;

use super::key_needles::Needles;
use super::key_search::{outside, search};
use super::managed::{attach, daemon, detach};
use super::openbao::OpenBao;
use super::process_memory::wait_until_idle;
use super::serving::use_disk;
use super::support::front_end::{FrontEnd, Options};
use super::support::home::Home;
use super::support::server::{eventually, succeed};
use super::threads::search as search_registers;

#[test]
fn what_a_service_answers_is_wiped_with_its_connection() {
    let service = OpenBao::start_tls();
    service.mount("engine");
    service.post("engine/keys/disks", json!({}));
    service.permit("user", "engine", "disks");
    let token = service.token("user");
    let file = service.write("token", &token);
    let key_set = format!(
        "[key_sets.prod]\nprovider = \"vault\"\nkey = \"disks\"\nmount = \"engine\"\n\
         hierarchy = \"direct\"\nendpoints = [{:?}]\npoll = \"1h\"\n\
         auth = {{ method = \"token\", token = {file:?} }}\nca_file = {:?}\n",
        service.url(),
        service.ca_file(),
    );
    let daemon = daemon(Home::new(), &key_set);
    let manager = daemon.server.pid();
    let volume = format!("c-{}", std::process::id());
    let create = [
        "volume",
        "create",
        &volume,
        "--size",
        "4M",
        "--key-set",
        "prod",
    ];
    succeed(&mut daemon.sealblk(&create));
    let exported = daemon.home.path("dek");
    let mut export = daemon.sealblk(&["volume", "export-dek", &volume]);
    export.args(["--i-understand-that-this-key-decrypts-the-disk", "--to"]);
    succeed(export.arg(&exported));
    let dek = std::fs::read(&exported).unwrap();
    let needles = Needles::new()
        .dek("the DEK", &dek)
        .text("the token", &token);

    let (socket, worker) = attach(&daemon, &volume);
    let mut front = FrontEnd::connect(&socket, &Options::default()).unwrap();
    use_disk(&mut front);
    for (pid, who) in [(manager, "the manager"), (worker, "the worker")] {
        // The connection to the service is kept for a second or two.
        eventually(&format!("{who} has the key in secret memory alone"), || {
            wait_until_idle(pid);
            let hits = search(pid, &needles);
            let wrong = outside(&hits);
            if !wrong.is_empty() {
                eprintln!("{who}, for now: {wrong:?}");
            }
            wrong.is_empty().then_some(())
        });
        let hits = search(pid, &needles);
        assert!(hits.iter().any(|hit| hit.what.contains("the DEK")), "{who}");
        let registers = search_registers(pid, &needles);
        assert!(registers.is_empty(), "{who}: {registers:#?}");
    }
    let hits = search(worker, &Needles::new().text("the token", &token));
    assert!(hits.is_empty(), "a worker has no credential: {hits:?}");
    drop(front);
    detach(&daemon, &volume);
    eventually("the key is nowhere", || {
        wait_until_idle(manager);
        let hits = search(manager, &Needles::new().dek("the DEK", &dek));
        hits.is_empty().then_some(())
    });
}

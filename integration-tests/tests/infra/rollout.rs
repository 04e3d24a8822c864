use muster_agent::Action;
use muster_infra::{
    nginx::Site,
    pgbouncer::Configure,
    tls::{Certificate, Inspect},
};
use muster_integration_tests::{
    lab::{Inputs, Lab, Pooling},
    probe::probe,
};
use serde_json::{Value, json};

use crate::{context, does, undoes};

fn certificate(inputs: &Inputs) -> Value {
    let dir = &inputs.tls_directory;
    json!({
        "domain": inputs.domain, "cert": dir.join("site.crt"), "key": dir.join("site.key"), "ca": dir.join("ca.crt"),
        "ca_key": dir.join("ca.key"), "reload": {"pid_file": inputs.nginx_pid_file, "process": "nginx"},
    })
}

fn site(inputs: &Inputs) -> Value {
    let dir = &inputs.tls_directory;
    json!({
        "site": inputs.nginx_site, "config": inputs.nginx_config, "pid_file": inputs.nginx_pid_file,
        "binary": inputs.nginx_binary, "server_name": inputs.domain, "listen_http": inputs.http_address,
        "listen_https": inputs.https_address, "cert": dir.join("site.crt"), "key": dir.join("site.key"),
        "upstreams": [inputs.upstream],
    })
}

fn pool(inputs: &Inputs) -> Value {
    let console = format!("postgres://{}@127.0.0.1:{}/pgbouncer", inputs.pgbouncer_admin, inputs.pgbouncer_port);
    json!({
        "config": inputs.pgbouncer_config, "admin": {"dsn": console, "password": {"file": inputs.password_file}},
        "databases": {"revenue_engine": {"host": inputs.database_host, "port": inputs.database_port}},
        "listen_addr": inputs.pgbouncer_host, "listen_port": inputs.pgbouncer_port, "auth_type": "plain",
        "auth_file": inputs.pgbouncer_auth_file, "admin_users": [inputs.pgbouncer_admin],
    })
}

/// The lab is broken as seen from outside, whole after the actions, and broken in the same way after their undo.
#[tokio::test]
async fn the_lab_is_mended_and_taken_back() {
    let lab = Lab::start(Pooling::OneSession).unwrap();
    let inputs = lab.inputs().unwrap();
    let before = probe(&inputs).unwrap();
    assert!(!before.certificate.ok && !before.redirect.ok && !before.pooling.ok, "{before:?}");
    assert_eq!(before.certificate.verdict, "10 (certificate has expired)");
    assert_eq!((before.redirect.status, before.pooling.served), (200, 1));

    let mut done: Vec<(&dyn Action, Value, Value)> = Vec::new();
    for (action, with) in
        [(&Certificate as &dyn Action, certificate(&inputs)), (&Site, site(&inputs)), (&Configure, pool(&inputs))]
    {
        let (prepared, _) = does(action, &with).await;
        done.push((action, with, prepared));
    }
    let after = probe(&inputs).unwrap();
    assert!(after.certificate.ok && after.redirect.ok, "{after:?}");
    let with = json!({
        "address": inputs.https_address, "server_name": inputs.domain, "ca_file": inputs.tls_directory.join("ca.crt"),
    });
    let seen = Inspect.run(&context(), &with).await.unwrap().output;
    assert_eq!((&seen["chain_valid"], &seen["protocol"]), (&json!(true), &json!("TLSv1.3")), "{seen}");
    assert_eq!(after.pooling.served, after.pooling.clients, "{after:?}");

    for (action, with, prepared) in done.iter().rev() {
        undoes(*action, with, prepared).await;
    }
    let back = probe(&inputs).unwrap();
    assert_eq!(back.certificate.verdict, before.certificate.verdict);
    assert_eq!((back.redirect.status, back.pooling.served), (before.redirect.status, before.pooling.served));
}

//! What a token has opened ends with it: streams and waits, at its revocation and at its expiry, and nobody else's.

use std::{future::Future, time::Duration};

use muster_coordinator::api::token::{NewToken, Role};
use muster_proto::v1::{
    self as pb, milestone_service_client::MilestoneServiceClient, run_service_client::RunServiceClient,
};
use secrecy::ExposeSecret as _;
use serde_json::json;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tonic::{Code, Status, Streaming};

use crate::{
    harness::{Authed, NAMESPACE, Served, reason, served, soon},
    methods::done,
};

/// "Within a second or so": what is told only by asking now and then takes longer.
const AT_ONCE: Duration = Duration::from_millis(1_500);

/// Calls that are open, and how each ended.
struct Open {
    calls: JoinSet<(&'static str, Result<(), Status>)>,
    opened: mpsc::Receiver<()>,
}

/// Read to the end.
async fn drained<T>(
    stream: Result<tonic::Response<Streaming<T>>, Status>,
    opened: mpsc::Sender<()>,
) -> Result<(), Status> {
    let mut stream = stream?.into_inner();
    opened.send(()).await.unwrap();
    while stream.message().await?.is_some() {}
    Ok(())
}

impl Open {
    /// Everything that lasts, opened with a token.
    async fn all(served: &Served, token: &str, run: &pb::Run) -> Self {
        let (told, opened) = mpsc::channel(8);
        let mut open = Self { calls: JoinSet::new(), opened };
        let channel = served.with_token(token);
        let runs = || RunServiceClient::new(channel.clone());
        let (name, mut client, tell) = (run.name.clone(), runs(), told.clone());
        open.spawn("WatchRun", async move {
            let request = pb::WatchRunRequest { name, ..Default::default() };
            drained(client.watch_run(request).await, tell).await
        });
        let (name, mut client, tell) = (run.name.clone(), runs(), told.clone());
        open.spawn("WatchRunLogs", async move {
            let request = pb::WatchRunLogsRequest { name, ..Default::default() };
            drained(client.watch_run_logs(request).await, tell).await
        });
        let (mut client, tell) = (MilestoneServiceClient::<Authed>::new(channel.clone()), told.clone());
        open.spawn("WatchMilestones", async move {
            let request = pb::WatchMilestonesRequest { parent: NAMESPACE.to_owned() };
            drained(client.watch_milestones(request).await, tell).await
        });
        let (name, mut client) = (run.name.clone(), runs());
        open.spawn("WaitRun", async move {
            client.wait_run(pb::WaitRunRequest { name, ..Default::default() }).await.map(drop)
        });
        for _ in 0..3 {
            soon("an open stream", open.opened.recv()).await.expect("it opens");
        }
        // A wait says nothing until it is over: this connection has taken it when it answers what came after it.
        runs().get_run(pb::GetRunRequest { name: run.name.clone() }).await.unwrap();
        open
    }

    fn spawn(&mut self, what: &'static str, call: impl Future<Output = Result<(), Status>> + Send + 'static) {
        self.calls.spawn(async move { (what, call.await) });
    }

    async fn all_end_with(mut self, wanted: &str) {
        let mut count = 0;
        while let Some(ended) = soon("the end of a call", self.calls.join_next()).await {
            let (what, ended) = ended.unwrap();
            let status = ended.expect_err(what);
            assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, wanted), "{what}");
            count += 1;
        }
        assert_eq!(count, 4);
    }
}

async fn token(served: &Served, ttl: Option<Duration>) -> (String, String) {
    let new = NewToken { actor: "service/ci".into(), role: Role::Viewer, ttl };
    let (info, secret) = served.tokens.create(&"muster".into(), new).await.unwrap();
    (info.id, secret.expose_secret().to_owned())
}

#[tokio::test]
async fn a_revocation_ends_what_is_open_and_nothing_of_others() {
    let served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    let (id, leaked) = token(&served, None).await;
    let (_, good) = token(&served, None).await;
    let (leaked, mut others) = (Open::all(&served, &leaked, &run).await, Open::all(&served, &good, &run).await);
    let revoked = Instant::now();
    served.tokens.revoke(&"person/dba-1".into(), &id).await.unwrap();
    leaked.all_end_with("TOKEN_REVOKED").await;
    assert!(revoked.elapsed() < AT_ONCE, "{:?}", revoked.elapsed());
    assert!(others.calls.try_join_next().is_none(), "another token's call has ended");
    served.fake.work(&run.run_id, "a", done(json!(1)));
    let waited = async {
        loop {
            let (what, ended) = others.calls.join_next().await.unwrap().unwrap();
            ended.expect(what);
            if what == "WaitRun" {
                return;
            }
        }
    };
    soon("the end of the other's wait", waited).await;
}

#[tokio::test]
async fn an_expiry_ends_what_is_open() {
    let served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    let made = Instant::now();
    let ttl = Duration::from_secs(2);
    let (_, secret) = token(&served, Some(ttl)).await;
    Open::all(&served, &secret, &run).await.all_end_with("TOKEN_EXPIRED").await;
    assert!((ttl..ttl + AT_ONCE).contains(&made.elapsed()), "{:?}", made.elapsed());
}

/// Who revokes their own token is answered: that call does not last.
#[tokio::test]
async fn a_revocation_of_its_own_token_is_answered() {
    let served = served().await;
    let new = NewToken { actor: "person/dba-1".into(), role: Role::Admin, ttl: None };
    let (info, secret) = served.tokens.create(&"muster".into(), new).await.unwrap();
    let channel = served.with_token(secret.expose_secret());
    let mut client = pb::token_service_client::TokenServiceClient::new(channel);
    let revoke = pb::RevokeTokenRequest { name: format!("tokens/{}", info.id) };
    assert!(client.revoke_token(revoke.clone()).await.unwrap().into_inner().revoke_time.is_some());
    assert_eq!(reason(&client.revoke_token(revoke).await.unwrap_err()), "TOKEN_REVOKED");
}

//! A key service with several endpoints goes on working while one of them
//! does, whatever is wrong with the others, and says so when none does.
//!
//! The endpoints are proxies with faults before real OpenBao servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/faulty_proxy.rs"]
#[allow(dead_code)]
mod faulty_proxy;
#[path = "support/openbao.rs"]
#[allow(dead_code)]
mod openbao;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use faulty_proxy::{Fault, Proxy};
use openbao::{OpenBao, ROOT};
use sealblk::error::Explain;
use sealblk::kms::cluster::Timing;
use sealblk::kms::credential::SecretFile;
use sealblk::kms::vault::{Auth, Settings, VaultProvider};
use sealblk::kms::{Class, Denied, Error, KeyRef, Provider, Wrapped, tls};
use sealblk::secret::Secret;
use serde_json::json;

const AAD: &[u8] = b"volume";
const TIMEOUT: Duration = Duration::from_secs(3);
const DEADLINE: Duration = Duration::from_secs(12);

/// The servers behind the proxies: one with the keys, and one without any.
fn servers() -> &'static (OpenBao, OpenBao) {
    static SERVERS: OnceLock<(OpenBao, OpenBao)> = OnceLock::new();
    SERVERS.get_or_init(|| {
        let servers = (OpenBao::start(), OpenBao::start());
        servers.0.mount("transit");
        servers.1.mount("transit");
        servers
    })
}

/// Endpoints A, B and C, and a key of this test.
struct Site {
    endpoints: Vec<Proxy>,
    key: KeyRef,
    provider: VaultProvider,
}

impl Site {
    fn new() -> Self {
        let server = &servers().0;
        Self::over(&[server, server, server])
    }

    fn over(servers: &[&OpenBao]) -> Self {
        let endpoints = servers.iter().map(|server| Proxy::to(server.port()));
        Self::with(endpoints.collect(), DEADLINE)
    }

    fn with(endpoints: Vec<Proxy>, deadline: Duration) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("key-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let keeper = &servers().0;
        keeper.post(&format!("transit/keys/{name}"), json!({}));
        let urls = endpoints
            .iter()
            .map(|proxy| format!("http://127.0.0.1:{}", proxy.port()));
        let settings = Settings {
            endpoints: urls.map(|url| url.parse().unwrap()).collect(),
            namespace: None,
            mount: "transit".parse().unwrap(),
            auth: Auth::Token(SecretFile::new(keeper.write("token", ROOT))),
            tls: tls::Settings::default(),
            timing: Timing {
                timeout: TIMEOUT,
                deadline,
            },
        };
        Site {
            endpoints,
            key: KeyRef {
                id: Some(name),
                version: None,
            },
            provider: VaultProvider::new(settings),
        }
    }

    fn wrap(&self) -> Result<(Wrapped, Secret), Error> {
        let payload = Secret::random(64).unwrap();
        let wrapped = wait(self.provider.wrap(&self.key, &payload, AAD))?;
        Ok((wrapped, payload))
    }

    fn unwrap(&self, wrapped: &Wrapped) -> Result<Secret, Error> {
        wait(self.provider.unwrap(wrapped, AAD))
    }

    /// A round trip; how long it took.
    fn works(&self) -> Duration {
        let start = Instant::now();
        let (wrapped, payload) = self.wrap().unwrap();
        assert_eq!(self.unwrap(&wrapped).unwrap(), payload);
        start.elapsed()
    }

    /// How many connections each endpoint has taken.
    fn taken(&self) -> Vec<usize> {
        self.endpoints.iter().map(Proxy::taken).collect()
    }
}

fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

#[test]
fn the_first_endpoint_is_asked_and_no_other() {
    let site = Site::new();
    site.works();
    let taken = site.taken();
    assert!(taken[0] > 0);
    assert_eq!(&taken[1..], [0, 0]);
}

#[test]
fn one_that_refuses_costs_no_time() {
    let site = Site::new();
    site.endpoints[0].set(Fault::Refuse);
    assert!(site.works() < TIMEOUT, "went on at once");
    assert!(site.taken()[1] > 0);
    assert_eq!(site.taken()[2], 0);
}

#[test]
fn a_silent_one_costs_its_timeout_once_and_is_skipped_then() {
    let site = Site::new();
    site.endpoints[0].set(Fault::Silent);
    let first = site.works();
    assert!(first >= TIMEOUT, "{first:?}");
    let taken = site.taken()[0];
    let second = site.works();
    assert!(second < TIMEOUT, "{second:?}");
    assert_eq!(site.taken()[0], taken, "not asked again");
}

/// What an endpoint said is not forgotten for its silence when time runs out.
#[test]
fn silence_in_less_than_its_time_hides_nothing() {
    let sealed = Fault::http("503 Unavailable", "", r#"{"errors":["Vault is sealed"]}"#);
    let nobody = Proxy::to(servers().0.port());
    nobody.set(sealed);
    let site = Site::with(vec![nobody], Duration::from_secs(2));
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            while site.taken()[0] == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            site.endpoints[0].set(Fault::Silent);
        });
        site.wrap().unwrap_err()
    });
    assert_eq!(error.class(), Class::Sealed, "{error}");
    assert!(site.taken()[0] > 1, "asked again");
}

#[test]
fn a_frozen_one_is_as_good_as_silent() {
    let frozen = OpenBao::start();
    let site = Site::over(&[&frozen, &servers().0]);
    frozen.freeze();
    assert!(site.works() >= TIMEOUT);
    assert!(site.taken()[1] > 0);
}

#[test]
fn one_that_comes_back_is_asked_again() {
    let site = Site::new();
    site.endpoints[0].set(Fault::Refuse);
    site.works();
    site.endpoints[0].set(Fault::None);
    let start = Instant::now();
    while site.taken()[0] == 0 {
        site.works();
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "never asked again"
        );
    }
    let others = site.taken()[1..].to_vec();
    site.works();
    assert_eq!(site.taken()[1..], others, "the first is the first again");
}

#[test]
fn one_that_is_slow_but_in_time_is_used() {
    let site = Site::new();
    site.endpoints[0].set(Fault::Slow(TIMEOUT / 10));
    assert!(site.works() >= TIMEOUT / 10);
    assert_eq!(site.taken()[1..], [0, 0]);
}

#[test]
fn one_that_fails_in_any_other_way_is_passed_over() {
    for fault in [
        Fault::Cut,
        Fault::http("500 Internal Server Error", "", r#"{"errors":["1 error"]}"#),
        Fault::http("502 Bad Gateway", "", "<html>no</html>"),
        Fault::http(
            "503 Service Unavailable",
            "",
            r#"{"errors":["Vault is sealed"]}"#,
        ),
        Fault::http("473 Standby", "", ""),
        Fault::http("429 Too Many Requests", "Retry-After: 60\r\n", "{}"),
        Fault::http("200 OK", "", "hello"),
        Fault::http("200 OK", "", r#"{"data":{}}"#),
        Fault::http("404 Not Found", "", r#"{"errors":[]}"#),
        Fault::Answer(b"220 smtp.example ESMTP\r\n".to_vec()),
        Fault::Answer(Vec::new()),
    ] {
        let site = Site::new();
        site.endpoints[0].set(fault.clone());
        let took = site.works();
        assert!(took < TIMEOUT, "{fault:?} took {took:?}");
        assert!(site.taken()[1] > 0, "{fault:?}");
    }
}

#[test]
fn an_endless_answer_is_cut_off() {
    let site = Site::new();
    let mut answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n\"".to_vec();
    answer.resize(4 << 20, b'x');
    site.endpoints[0].set(Fault::Answer(answer.clone()));
    site.works();
    for endpoint in &site.endpoints {
        endpoint.set(Fault::Answer(answer.clone()));
    }
    let error = site.wrap().unwrap_err();
    assert_eq!(error.class(), Class::Protocol);
    assert!(error.to_string().contains("more than"), "{error}");
}

#[test]
fn no_redirect_takes_the_token_to_another_host() {
    let site = Site::new();
    let thief = Proxy::to(servers().0.port());
    let location = format!("Location: http://127.0.0.1:{}/v1/x\r\n", thief.port());
    for endpoint in &site.endpoints {
        endpoint.set(Fault::http("307 Temporary Redirect", &location, ""));
    }
    let error = site.wrap().unwrap_err();
    assert_eq!(error.class(), Class::Unreachable);
    assert!(error.to_string().contains("on standby"), "{error}");
    assert_eq!(thief.taken(), 0);
    site.endpoints[2].set(Fault::None);
    site.works();
}

#[test]
fn a_key_that_only_a_sibling_has_is_found() {
    let (keeper, empty) = servers();
    let site = Site::over(&[empty, empty, keeper]);
    assert!(site.works() < TIMEOUT);
    let taken = site.taken();
    assert!(taken.iter().all(|&taken| taken > 0), "{taken:?}");
}

#[test]
fn a_key_that_no_sibling_has_is_not_found_at_once() {
    let empty = &servers().1;
    let site = Site::over(&[empty, empty]);
    let start = Instant::now();
    assert_eq!(site.wrap().unwrap_err().class(), Class::NotFound);
    assert!(start.elapsed() < TIMEOUT);
}

/// The one that does not answer could be the one that has it.
#[test]
fn a_key_counts_as_missing_only_when_every_endpoint_says_so() {
    let empty = &servers().1;
    let site = Site::over(&[empty, &servers().0]);
    let (wrapped, payload) = site.wrap().unwrap();
    site.endpoints[1].set(Fault::Refuse);
    let error = site.unwrap(&wrapped).unwrap_err();
    assert_eq!(error.class(), Class::Unreachable, "{error}");
    site.endpoints[1].set(Fault::None);
    assert_eq!(site.unwrap(&wrapped).unwrap(), payload);
}

/// Nor when the time is over before all have been asked.
#[test]
fn a_key_does_not_count_as_missing_where_nobody_looked() {
    let endpoints = || vec![Proxy::to(servers().1.port()), Proxy::to(servers().0.port())];
    let late = Site::with(endpoints(), Duration::from_millis(100));
    late.endpoints[0].set(Fault::Slow(Duration::from_millis(150)));
    let error = late.wrap().unwrap_err();
    assert_eq!(error.class(), Class::Unreachable, "{error}");
    assert!(error.to_string().contains("was not asked"), "{error}");
}

#[test]
fn a_denial_and_a_wrong_binding_are_answers() {
    let site = Site::new();
    let (wrapped, _) = site.wrap().unwrap();
    let wrong = wait(site.provider.unwrap(&wrapped, b"another volume"));
    assert_eq!(wrong.unwrap_err().class(), Class::BadKey);
    let key = site.key.id.as_deref().unwrap();
    let keeper = &servers().0;
    keeper.delete(&format!("transit/keys/{key}/soft-delete"));
    let denied = site.unwrap(&wrapped).unwrap_err();
    assert_eq!(denied.class(), Class::Denied(Denied::Deleted));
    assert_eq!(site.taken()[1..], [0, 0], "nobody else was asked");
}

#[test]
fn when_none_answers_that_is_told_within_the_deadline() {
    let site = Site::new();
    let (wrapped, payload) = site.wrap().unwrap();
    site.endpoints[0].set(Fault::Refuse);
    site.endpoints[1].set(Fault::Silent);
    site.endpoints[2].set(Fault::http("500 Oops", "", ""));
    let start = Instant::now();
    let error = site.unwrap(&wrapped).unwrap_err();
    let took = start.elapsed();
    assert!(took < DEADLINE + TIMEOUT, "{took:?}");
    assert!(took > DEADLINE / 3, "it was tried again: {took:?}");
    assert_eq!(error.class(), Class::Unreachable);
    assert!(error.help().is_some());
    for (endpoint, why) in site
        .endpoints
        .iter()
        .zip(["refuses", "did not answer", "status 500"])
    {
        let told = error.to_string();
        assert!(
            told.contains(&format!("127.0.0.1:{}", endpoint.port())),
            "{told}"
        );
        assert!(told.contains(why), "{told}");
    }
    site.endpoints[2].set(Fault::None);
    assert_eq!(site.unwrap(&wrapped).unwrap(), payload);
}

#[test]
fn a_call_that_waits_ends_when_one_comes_back() {
    let site = Site::with(
        (0..3).map(|_| Proxy::to(servers().0.port())).collect(),
        Duration::from_secs(60),
    );
    for endpoint in &site.endpoints {
        endpoint.set(Fault::http("500 Oops", "", ""));
    }
    std::thread::scope(|scope| {
        let call = scope.spawn(|| site.wrap().map(drop));
        let start = Instant::now();
        // It is in its second round.
        while site.taken()[0] < 2 {
            assert!(start.elapsed() < Duration::from_secs(30));
            assert!(!call.is_finished());
            std::thread::sleep(Duration::from_millis(5));
        }
        site.endpoints[1].set(Fault::None);
        call.join().unwrap().unwrap();
        assert!(start.elapsed() < Duration::from_secs(30));
    });
}

#[test]
fn retry_after_is_obeyed() {
    let site = Site::with(vec![Proxy::to(servers().0.port())], DEADLINE);
    let throttled = |seconds: u32| {
        let headers = format!("Retry-After: {seconds}\r\n");
        Fault::http("429 Too Many Requests", &headers, r#"{"errors":["quota"]}"#)
    };
    // Longer than the deadline: told at once.
    site.endpoints[0].set(throttled(3600));
    let start = Instant::now();
    let error = site.wrap().unwrap_err();
    let Class::Throttled { retry_after } = error.class() else {
        panic!("{error}");
    };
    assert_eq!(retry_after, Some(Duration::from_secs(3600)));
    assert!(start.elapsed() < TIMEOUT);
    // And not asked again before that.
    let taken = site.taken();
    site.endpoints[0].set(Fault::None);
    let error = site.wrap().unwrap_err();
    assert!(
        matches!(error.class(), Class::Throttled { retry_after: Some(rest) }
        if rest > Duration::from_secs(3500))
    );
    assert_eq!(site.taken(), taken);

    // Shorter: waited for, and then it works.
    let site = Site::with(vec![Proxy::to(servers().0.port())], DEADLINE);
    site.endpoints[0].set(throttled(2));
    std::thread::scope(|scope| {
        let call = scope.spawn(|| {
            let start = Instant::now();
            site.wrap().unwrap();
            start.elapsed()
        });
        while site.taken()[0] == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        site.endpoints[0].set(Fault::None);
        let took = call.join().unwrap();
        assert!(took >= Duration::from_secs(2), "{took:?}");
    });
}

#[test]
fn the_killed_first_of_three_is_not_missed() {
    let mut first = OpenBao::start();
    let site = Site::over(&[&first, &servers().0, &servers().0]);
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..10).map(|_| site.works()).max()))
            .collect();
        first.kill();
        site.endpoints[0].set(Fault::Refuse);
        for call in calls {
            call.join().unwrap();
        }
    });
}

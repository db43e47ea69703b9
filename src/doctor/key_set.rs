//! One key set: its files, each of its endpoints, and what those have to do
//! with each other and with the disks of this host.

use tokio::task::JoinSet;

use super::check::{Check, Status};
use super::endpoint::{self, Found, Question};
use super::network::{describe, near_end};
use super::placement;
use super::ways;
use crate::keys::{Definition, Source};
use crate::kms::{Error, tls};

/// All checks of one key set. Its endpoints are examined at the same time.
pub(super) async fn examine(definition: &Definition) -> Vec<Check> {
    let source = &definition.source;
    let mut checks = vec![configuration(definition)];
    checks.extend(credentials(source));
    let found = endpoints(definition).await;
    let mut placed = placement::of_files(&ways::files(source));
    placed.extend(placement::of_endpoints(
        found
            .iter()
            .map(|found| (&*found.way.endpoint, &*found.addresses)),
    ));
    let replication = replication(&found).await;
    for found in found {
        checks.extend(found.checks);
    }
    checks.extend(replication);
    checks.extend(placed);
    checks
}

fn configuration(definition: &Definition) -> Check {
    let source = &definition.source;
    let key = ways::key(definition);
    let ways: Vec<String> = ways::ways(source)
        .into_iter()
        .map(|way| way.endpoint)
        .collect();
    let message = match source {
        Source::File { path } => format!("{key}, in {}", path.display()),
        _ => format!(
            "{key}, at {}, as {}",
            ways.join(", "),
            ways::identity(source)
        ),
    };
    Check::ok("configuration", message)
}

/// The files that are shown to a service, or that it is known by.
fn credentials(source: &Source) -> Vec<Check> {
    const NAME: &str = "credential";
    let secrets = ways::secrets(source)
        .into_iter()
        .map(|(what, file)| match file.read() {
            Ok(_) => Check::ok(
                NAME,
                format!("{what}: {file} can be read, and by no others"),
            ),
            Err(error) => {
                let error = Error::from(error);
                let mut check = Check::failed(NAME, &error);
                check.message = format!("{what}: {}", check.message);
                check
            }
        });
    let certificates =
        ways::certificates(source)
            .into_iter()
            .map(|(what, path)| match tls::in_file(&path) {
                // Our own is the first one; of authorities, the others go on.
                Ok(found) => match found.first() {
                    Some(first) => near_end(
                        NAME,
                        format!("{what}: {}: {}", path.display(), describe(first)),
                        first,
                        "have it renewed, and replace the file",
                    ),
                    None => Check::ok(NAME, format!("{what}: {}", path.display())),
                },
                Err(error) => {
                    let mut check = Check::failed(NAME, &error);
                    check.message = format!("{what}: {}", check.message);
                    check
                }
            });
    secrets.chain(certificates).collect()
}

async fn endpoints(definition: &Definition) -> Vec<Found> {
    let mut tasks = JoinSet::new();
    for (number, way) in ways::ways(&definition.source).into_iter().enumerate() {
        let question = Question {
            key: ways::key(definition),
            identity: ways::identity(&definition.source),
            given_token: ways::has_a_given_token(&definition.source),
        };
        tasks.spawn(async move { (number, endpoint::examine(way, &question).await) });
    }
    let mut found: Vec<(usize, Found)> = tasks.join_all().await;
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, found)| found).collect()
}

/// What each endpoint wrapped, each other one has to unwrap by itself.
async fn replication(found: &[Found]) -> Vec<Check> {
    const NAME: &str = "replication";
    if found.iter().all(|found| found.way.net.is_none()) {
        return Vec::new();
    }
    if found.len() < 2 {
        let alone = "there is one endpoint: without it, no disk can be attached";
        return vec![Check::skip(NAME, alone)];
    }
    let mut checks = Vec::new();
    let mut pairs = 0;
    for from in found {
        let Some(sample) = &from.sample else { continue };
        for to in found {
            if std::ptr::eq(from, to) || !to.reached {
                continue;
            }
            match to.opens(sample).await {
                Ok(()) => pairs += 1,
                Err(error) => {
                    let mut check = Check::failed(NAME, &error).at(&to.way.endpoint);
                    check.message = format!(
                        "it does not unwrap what {} wrapped: {}",
                        from.way.endpoint, check.message
                    );
                    checks.push(check);
                }
            }
        }
    }
    let missing: Vec<&str> = found
        .iter()
        .filter(|found| found.sample.is_none())
        .map(|found| found.way.endpoint.as_str())
        .collect();
    if checks.iter().any(|check| check.status == Status::Fail) {
        return checks;
    }
    vec![match (pairs, missing.as_slice()) {
        (0, _) => Check::skip(NAME, "not tried: fewer than two endpoints wrap"),
        (_, []) => Check::ok(
            NAME,
            "what each endpoint wraps, each other one unwraps by itself",
        ),
        (_, missing) => Check::warn(
            NAME,
            format!("not tried with what {} wraps", missing.join(", ")),
            "see above why it wraps nothing",
        ),
    }]
}

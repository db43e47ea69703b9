//! What gives a machine its managed identities: the instance metadata service,
//! App Service's endpoint, and the agent of Azure Arc.

use std::path::PathBuf;

use serde_json::json;

use super::http::{Request, Response};
use super::{CLIENT, State, TENANT, now, uuid};

pub const RESOURCE_ID: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/disks";

/// A machine with one identity, which is the system-assigned one and an
/// assigned one at once.
pub struct Machine {
    pub identity: Option<String>,
    /// What App Service wants to be shown.
    pub header: String,
    /// Where the agent of Arc writes.
    pub keys: PathBuf,
    /// What the agent of Arc wrote, and in which file.
    written: Option<(PathBuf, String)>,
    /// Where the agent says that it wrote, if not the truth.
    pub lie: Option<String>,
    /// Whether the agent is too old to know of assigned identities.
    pub old_agent: bool,
    /// A status to answer with, so many times.
    pub fails: Option<(u16, u32)>,
}

impl Machine {
    pub fn new(keys: PathBuf) -> Self {
        Machine {
            identity: Some(CLIENT.into()),
            header: uuid(),
            keys,
            written: None,
            lie: None,
            old_agent: false,
            fails: None,
        }
    }
}

pub fn answer(state: &mut State, request: &Request) -> Option<Response> {
    if let Some((status, times)) = state.platform.fails {
        state.platform.fails = (times > 1).then_some((status, times - 1));
        let body = json!({"error": "try_again", "error_description": "being updated"});
        return Some(Response::json(status, &body));
    }
    let api = request.param("api-version").unwrap_or_default();
    let bad = |text: &str| {
        Response::json(
            400,
            &json!({"error": "invalid_request", "error_description": text}),
        )
    };
    let has_metadata = request.header("metadata") == Some("true");
    Some(match (request.path.as_str(), api) {
        ("/metadata/identity/oauth2/token", "2018-02-01") => {
            // It refuses what may have been forwarded to it.
            match has_metadata && request.header("x-forwarded-for").is_none() {
                true => identity(state, request, "msi_res_id", false),
                false => bad("Required metadata header not specified"),
            }
        }
        ("/msi/token", "2019-08-01") => {
            match request.header("x-identity-header") == Some(&*state.platform.header) {
                true => identity(state, request, "mi_res_id", false),
                false => Response::json(401, &json!({"statusCode": 401, "message": "no"})),
            }
        }
        ("/arc/token", "2020-06-01") if has_metadata => arc(state, request),
        _ => bad("no such thing"),
    })
}

fn arc(state: &mut State, request: &Request) -> Response {
    let machine = &mut state.platform;
    let shown = request.header("authorization").unwrap_or_default();
    if let Some((path, text)) = machine.written.take()
        && shown == format!("Basic {text}")
    {
        std::fs::remove_file(path).unwrap();
        return identity(state, request, "msi_res_id", true);
    }
    let (path, text) = (machine.keys.join(format!("{}.key", uuid())), uuid());
    std::fs::write(&path, &text).unwrap();
    let said = machine.lie.clone();
    let said = said.unwrap_or_else(|| path.display().to_string());
    machine.written = Some((path, text));
    Response::json(401, &json!({"error": "unauthorized_client"}))
        .with("www-authenticate", format!("Basic realm={said}"))
}

fn identity(state: &mut State, request: &Request, resource_id: &str, is_arc: bool) -> Response {
    let Some(resource) = request.param("resource") else {
        let body = json!({"error": "invalid_resource", "error_description": "no resource"});
        return Response::json(400, &body);
    };
    let ours = state.platform.identity.clone();
    let asked = ["client_id", "object_id", resource_id].map(|name| request.param(name));
    let is_ours = |asked: &Option<&str>| {
        asked.is_none_or(|asked| Some(asked) == ours.as_deref() || asked == RESOURCE_ID)
    };
    let ignored = is_arc && state.platform.old_agent;
    let Some(client) = ours
        .clone()
        .filter(|_| ignored || asked.iter().all(is_ours))
    else {
        let body = json!({"error": "invalid_request", "error_description": "Identity not found"});
        return Response::json(400, &body);
    };
    let resource = resource.to_owned();
    let (token, ends) = state.grant(&client, &resource, TENANT);
    let mut body = json!({
        "access_token": token,
        "expires_in": (ends - now()).to_string(),
        "expires_on": ends.to_string(),
        "resource": resource,
        "token_type": "Bearer",
    });
    if is_arc && !ignored {
        body["client_id"] = client.clone().into();
        body["object_id"] = client.into();
        body["msi_res_id"] = RESOURCE_ID.into();
    }
    Response::json(200, &body)
}

"""AWS KMS, IAM and STS as moto has them, made strict where moto is lax.

What moto does: keys, aliases, replicas, users, roles, and the verification of
signatures (of which each request needs one here). What is added, as the real
service does it:

- keys that are disabled, to be deleted, without material or out of reach do
  not encrypt or decrypt,
- Decrypt under another key than is named is IncorrectKeyException,
- keys have materials with ids, of which RotateKeyOnDemand adds one,
- policies allow by resource and encryption context, too,
- signatures are good for five minutes, and cover the body,
- failures of authentication have the names that KMS has for them.

Metadata services are there too: IMDSv2 below /latest, ECS below /v2.

usage: moto_kms.py PORT
Commands come as lines of JSON on standard input; each is answered by a line of
JSON on standard output. It ends with its input.
"""

import base64
import datetime
import fnmatch
import hashlib
import io
import json
import os
import sys
import threading
import time
import traceback
import uuid

os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"
os.environ["MOTO_PORT"] = sys.argv[1]

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from moto.core.authorization import ActionAuthenticatorMixin
from moto.core.exceptions import JsonRESTError
from moto.iam import access_control
from moto.iam.models import iam_backends
from moto.kms import models as kms_models
from moto.kms.models import kms_backends
from moto.kms.responses import KmsResponse
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.sts.models import sts_backends
from werkzeug.serving import make_server

ACCOUNT = "123456789012"
PORT = int(sys.argv[1])
lock = threading.RLock()


class Kms(JsonRESTError):
    code = 400


# --- keys


class Materials:
    """Shared by related keys of all regions."""

    def __init__(self):
        self.all = {}
        self.current = ""
        self.add()

    def add(self):
        self.current = os.urandom(32).hex()
        self.all[self.current] = os.urandom(32)


def short(text):
    return hashlib.sha256(text.encode()).digest()[:16]


def usable(key):
    if key.key_state in ("Enabled", "Updating"):
        return
    if key.key_state == "Disabled":
        raise Kms("DisabledException", f"{key.arn} is disabled.")
    words = {
        "PendingDeletion": "pending deletion",
        "PendingReplicaDeletion": "pending replica deletion",
        "PendingImport": "pending import",
    }
    state = words.get(key.key_state, key.key_state.lower())
    raise Kms("KMSInvalidStateException", f"{key.arn} is {state}.")


def associated(context):
    return json.dumps(context, sort_keys=True).encode()


def encrypt(self, key_id, plaintext, encryption_context):
    key = self.keys[self.any_id_to_key_id(key_id)]
    usable(key)
    if key.key_spec != "SYMMETRIC_DEFAULT" or key.key_usage != "ENCRYPT_DECRYPT":
        raise Kms("InvalidKeyUsageException", f"{key.arn} key usage is {key.key_usage}")
    current = key.materials.current
    head = b"\x01\x02" + short(key.id) + short(current)
    nonce = os.urandom(12)
    sealed = AESGCM(key.materials.all[current]).encrypt(
        nonce, plaintext, head + associated(encryption_context or {})
    )
    return head + nonce + sealed, key.arn


def decrypt(self, ciphertext_blob, encryption_context, key_id=None):
    head, nonce, sealed = (
        ciphertext_blob[:34],
        ciphertext_blob[34:46],
        ciphertext_blob[46:],
    )
    if len(sealed) < 16 or head[:2] != b"\x01\x02":
        raise Kms("InvalidCiphertextException", "")
    named = self.keys[self.any_id_to_key_id(key_id)] if key_id else None
    owner = next((k for k in self.keys.values() if short(k.id) == head[2:18]), None)
    if named:
        usable(named)
    if owner is None:
        raise Kms("InvalidCiphertextException", "")
    if named and named is not owner:
        raise Kms(
            "IncorrectKeyException",
            "The key ID in the request does not identify a CMK that can perform this operation.",
        )
    usable(owner)
    for name, material in owner.materials.all.items():
        if short(name) == head[18:34]:
            try:
                opened = AESGCM(material).decrypt(
                    nonce, sealed, head + associated(encryption_context or {})
                )
            except InvalidTag:
                break
            return opened, owner.arn
    raise Kms("InvalidCiphertextException", "")


made = kms_models.Key.__init__
described = kms_models.Key.to_dict


def make(self, *arguments, **named):
    made(self, *arguments, **named)
    self.materials = Materials()
    self.tells_material = True
    self.valid_to = None


def to_dict(self):
    told = described(self)
    metadata = told["KeyMetadata"]
    if self.tells_material:
        metadata["CurrentKeyMaterialId"] = self.materials.current
    if self.valid_to is not None:
        metadata["ValidTo"] = self.valid_to
    metadata["Enabled"] = self.key_state == "Enabled"
    return told


def rotate(self, key_id):
    key = self.keys[self.any_id_to_key_id(key_id)]
    usable(key)
    key.materials.add()
    return key.id


kms_models.Key.__init__ = make
kms_models.Key.to_dict = to_dict
kms_models.KmsBackend.encrypt = encrypt
kms_models.KmsBackend.decrypt = decrypt
kms_models.KmsBackend.rotate_key_on_demand = rotate


# --- who may


def resource_of(request, body):
    if request._service != "kms":
        return "*"
    named = json.loads(body or b"{}").get("KeyId", "")
    if named.startswith("arn:") and f":{request._region}:" not in named:
        raise Kms("NotFoundException", f"Invalid arn {named.split(':')[3]}")
    backend = kms_backends[ACCOUNT][request._region]
    name = backend.any_id_to_key_id
    try:
        return backend.keys[name(named)].arn
    except (KeyError, AttributeError):
        return named


def applies(statement, action, resource, context):
    def some(patterns, value):
        patterns = [patterns] if isinstance(patterns, str) else patterns
        return any(fnmatch.fnmatchcase(value.lower(), p.lower()) for p in patterns)

    if not some(statement["Action"], action) or not some(
        statement.get("Resource", "*"), resource
    ):
        return False
    for operator, conditions in statement.get("Condition", {}).items():
        assert operator == "StringEquals", operator
        for key, value in conditions.items():
            prefix, _, entry = key.rpartition(":")
            assert prefix == "kms:EncryptionContext", key
            if context.get(entry) != value:
                return False
    return True


def check_action_permitted(self, resource):
    if self._action == "sts:GetCallerIdentity":
        return
    body = self._body
    action = self._action
    if self._service == "kms":
        action = f"kms:{self._headers['X-Amz-Target'].split('.')[1]}"
    resource = resource_of(self, body)
    context = {}
    if self._service == "kms":
        context = json.loads(body or b"{}").get("EncryptionContext", {})
    allowed = False
    for policy in self._access_key.collect_policies():
        if isinstance(policy, dict):
            policy = policy["policy_document"]
        for statement in json.loads(policy)["Statement"]:
            if applies(statement, action, resource, context):
                if statement["Effect"] == "Deny":
                    self._raise_access_denied("with an explicit deny in an identity-based policy")
                allowed = True
    if not allowed:
        self._raise_access_denied(
            f"on resource: {resource} because no identity-based policy allows the {action} action"
        )


def kms_failure(code, text):
    def fail(self, *_):
        if self._service == "kms":
            raise Kms(code, text)
        raise XML[code]()

    return fail


XML = {
    "InvalidSignatureException": access_control.SignatureDoesNotMatchError,
    "UnrecognizedClientException": access_control.InvalidClientTokenIdError,
}


def access_denied(self, why):
    raise Kms(
        "AccessDeniedException",
        f"User: {self._access_key.arn} is not authorized to perform: {self._action} {why}",
    )


request = access_control.IAMRequest
request.check_action_permitted = check_action_permitted
request._raise_access_denied = access_denied
request._raise_signature_does_not_match = kms_failure(
    "InvalidSignatureException",
    "The request signature we calculated does not match the signature you provided.",
)
request._raise_invalid_access_key = kms_failure(
    "UnrecognizedClientException", "The security token included in the request is invalid."
)

authenticate = ActionAuthenticatorMixin._authenticate_and_authorize_action


def authenticate_most(self, iam_request_cls, resource="*"):
    # Nothing signs this one: the token in it is what authenticates.
    if self._get_action() != "AssumeRoleWithWebIdentity":
        authenticate(self, iam_request_cls, resource)


ActionAuthenticatorMixin._authenticate_and_authorize_action = authenticate_most


# --- requests


class State:
    def __init__(self):
        self.faults = {}
        self.expired = set()
        self.clocks = {}
        self.seen = []
        self.tokens = set()
        self.imds = None
        self.imds_tokens = set()
        self.ecs = None
        self.calls = {"imds": 0, "imds_tokens": 0, "ecs": 0, "sts": 0}


state = State()


class Early(Exception):
    def __init__(self, status, body, kind="application/x-amz-json-1.1", headers=()):
        super().__init__(status)
        self.status, self.body = status, body
        self.headers = [("Content-Type", kind), *headers]


def fault(code, message, status=400):
    return Early(status, json.dumps({"__type": code, "message": message}))


def until(seconds):
    end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    return end.strftime("%Y-%m-%dT%H:%M:%SZ")


def credentials(given):
    return {
        "AccessKeyId": given["access_key"],
        "SecretAccessKey": given["secret"],
        "Token": given["token"],
        "Expiration": until(given["lasts"]),
    }


def metadata(environ, path):
    """IMDSv2, of which each request but the first needs a token."""
    if path == "/latest/api/token":
        if environ["REQUEST_METHOD"] != "PUT" or not environ.get(
            "HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS"
        ):
            raise Early(400, "", "text/plain")
        token = uuid.uuid4().hex
        state.imds_tokens.add(token)
        state.calls["imds_tokens"] += 1
        raise Early(200, token, "text/plain")
    if environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN") not in state.imds_tokens:
        raise Early(401, "", "text/plain")
    roles = "/latest/meta-data/iam/security-credentials/"
    if state.imds is None:
        raise Early(404, "", "text/plain")
    if path == roles:
        raise Early(200, "disks", "text/plain")
    if path == roles + "disks":
        state.calls["imds"] += 1
        answer = {"Code": "Success", "Message": "", "Type": "AWS-HMAC"}
        raise Early(200, json.dumps(answer | credentials(state.imds)), "application/json")
    raise Early(404, "", "text/plain")


def container(environ, path):
    given = state.ecs
    if given is None or path != "/v2/credentials/" + given["id"]:
        raise Early(404, "{}", "application/json")
    if given.get("authorization") not in (None, environ.get("HTTP_AUTHORIZATION")):
        raise Early(401, json.dumps({"code": "AccessDenied"}), "application/json")
    state.calls["ecs"] += 1
    raise Early(200, json.dumps(credentials(given)), "application/json")


def signed(environ, body):
    """What KMS looks at before anything else. The access key."""
    authorization = environ.get("HTTP_AUTHORIZATION")
    if not authorization:
        raise fault("MissingAuthenticationTokenException", "Missing Authentication Token")
    scope = authorization.split("Credential=")[1].split(",")[0].split("/")
    access_key = scope[0]
    names = authorization.split("SignedHeaders=")[1].split(",")[0].split(";")
    digest = environ.get("HTTP_X_AMZ_CONTENT_SHA256")
    if digest is not None and digest != hashlib.sha256(body).hexdigest():
        raise fault("InvalidSignatureException", "The body is not the one that was signed.")
    for needed in ["host", "x-amz-date"]:
        if needed not in names:
            raise fault("IncompleteSignature", f"{needed} is not signed")
    stamp = environ["HTTP_X_AMZ_DATE"]
    made = datetime.datetime.strptime(stamp + "+0000", "%Y%m%dT%H%M%SZ%z").timestamp()
    now = time.time() + state.clocks.get(access_key, 0)
    shown = datetime.datetime.fromtimestamp(now, datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    if made < now - 300:
        raise fault(
            "InvalidSignatureException",
            f"Signature expired: {stamp} is now earlier than {shown} (-5 min.)",
        )
    if made > now + 300:
        raise fault(
            "InvalidSignatureException",
            f"Signature not yet current: {stamp} is still later than {shown} (+5 min.)",
        )
    if access_key in state.expired:
        raise fault(
            "ExpiredTokenException", "The security token included in the request is expired"
        )
    return access_key


def injected(access_key, operation):
    found = state.faults.get(access_key)
    if not found or (found.get("operations") and operation not in found["operations"]):
        return
    if found.get("times") is not None:
        found["times"] -= 1
        if found["times"] < 0:
            return
    headers = [("Retry-After", str(found["retry_after"]))] if found.get("retry_after") else []
    raise Early(found["status"], found["body"], headers=headers)


clock = threading.local()


class Handler(MotoRequestHandler):
    protocol_version = "HTTP/1.1"

    def date_time_string(self, timestamp=None):
        return super().date_time_string(time.time() + getattr(clock, "shift", 0))

    def log(self, *_):
        pass


class Front:
    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        environ["wsgi.input"] = io.BytesIO(body)
        request_id = str(uuid.uuid4())
        seen = {"request_id": request_id}
        access_key = None

        def start(status, headers, info=None):
            headers = [h for h in headers if h[0].lower() != "x-amzn-requestid"]
            headers.append(("x-amzn-RequestId", request_id))
            clock.shift = state.clocks.get(access_key, 0)
            seen["status"] = int(status.split()[0])
            return start_response(status, headers, info)

        try:
            path = environ.get("PATH_INFO", "")
            with lock:
                if path.startswith("/latest/"):
                    metadata(environ, path)
                if path.startswith("/v2/"):
                    container(environ, path)
                target = environ.get("HTTP_X_AMZ_TARGET", "")
                if target.startswith("TrentService."):
                    operation = target.split(".")[1]
                    asked = json.loads(body or b"{}")
                    seen |= {
                        "operation": operation,
                        "key": asked.get("KeyId"),
                        "context": asked.get("EncryptionContext"),
                        "agent": environ.get("HTTP_USER_AGENT"),
                    }
                    state.seen.append(seen)
                    access_key = environ.get("HTTP_AUTHORIZATION", "=").split("Credential=")[-1]
                    access_key = access_key.split("/")[0]
                    seen["access_key"] = access_key
                    signed(environ, body)
                    injected(access_key, operation)
                elif b"Action=AssumeRoleWithWebIdentity" in body:
                    sts(body)
            return self.app(environ, start)
        except Early as answer:
            start(f"{answer.status} x", answer.headers)
            return [answer.body.encode()]


def sts(body):
    from urllib.parse import parse_qs

    state.calls["sts"] += 1
    asked = parse_qs(body.decode())

    def refuse(code, message, status):
        raise Early(
            status,
            f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code>"
            f"<Message>{message}</Message></Error></ErrorResponse>",
            "text/xml",
        )

    if asked["WebIdentityToken"][0] not in state.tokens:
        refuse("InvalidIdentityToken", "No OpenIDConnect provider found for the token", 400)
    try:
        iam_backends[ACCOUNT]["aws"].get_role_by_arn(asked["RoleArn"][0])
    except Exception:
        refuse(
            "AccessDenied",
            "Not authorized to perform sts:AssumeRoleWithWebIdentity",
            403,
        )


# --- commands


def backend(region):
    return kms_backends[ACCOUNT][region]


def find(asked):
    return backend(asked["region"]).keys[asked["id"]]


removed = {}


def client(asked, service="kms"):
    import boto3

    return boto3.client(
        service,
        region_name=asked["region"],
        endpoint_url=f"http://127.0.0.1:{PORT}",
        aws_access_key_id=asked["access_key"],
        aws_secret_access_key=asked["secret"],
    )


class Commands:
    def user(self, asked):
        iam = iam_backends[ACCOUNT]["aws"]
        name = asked["name"]
        iam.create_user("us-east-1", name)
        iam.put_user_policy(name, "own", json.dumps(asked["policy"]))
        return self.access_key(asked)

    def access_key(self, asked):
        key = iam_backends[ACCOUNT]["aws"].create_access_key(asked["name"])
        return {"access_key": key.access_key_id, "secret": key.secret_access_key}

    def forget_access_key(self, asked):
        iam_backends[ACCOUNT]["aws"].delete_access_key(asked["access_key"], asked["name"])

    def policy(self, asked):
        iam_backends[ACCOUNT]["aws"].put_user_policy(
            asked["name"], "own", json.dumps(asked["policy"])
        )

    def role(self, asked):
        iam = iam_backends[ACCOUNT]["aws"]
        trust = json.dumps({"Version": "2012-10-17", "Statement": []})
        role = iam.create_role(asked["name"], trust, "/", None, "", [], "3600")
        iam.put_role_policy(asked["name"], "own", json.dumps(asked["policy"]))
        return {"arn": role.arn}

    def assume(self, asked):
        """A session of a new role, as metadata services give it out."""
        arn = self.role(asked)["arn"]
        made = sts_backends[ACCOUNT]["aws"].assume_role("us-east-1", "host", arn, None, 3600, None)
        return {
            "access_key": made.access_key_id,
            "secret": made.secret_access_key,
            "token": made.session_token,
        }

    def key(self, asked):
        key = backend(asked["region"]).create_key(
            None,
            asked.get("usage", "ENCRYPT_DECRYPT"),
            asked.get("spec", "SYMMETRIC_DEFAULT"),
            "",
            None,
            asked.get("multi_region", False),
        )
        key.tells_material = asked.get("tells_material", True)
        return {"id": key.id, "arn": key.arn, "material": key.materials.current}

    def replicate(self, asked):
        key = backend(asked["region"]).replicate_key(asked["id"], asked["to"])
        return {"arn": key.arn}

    def alias(self, asked):
        kms, name = backend(asked["region"]), "alias/" + asked["alias"]
        if kms.alias_exists(name):
            kms.update_alias(asked["id"], name)
        else:
            kms.create_alias(asked["id"], name)

    def rotate(self, asked):
        key = find(asked)
        key.materials.add()
        return {"material": key.materials.current}

    def state(self, asked):
        if asked["id"] in removed:
            backend(asked["region"]).keys[asked["id"]] = removed.pop(asked["id"])
        key = find(asked)
        key.key_state = asked["state"]
        key.valid_to = asked.get("valid_to")
        if asked["state"] == "PendingDeletion":
            key.deletion_date = datetime.datetime(2040, 1, 2, 3, 4, 5)

    def remove(self, asked):
        """Until its state is set again."""
        removed[asked["id"]] = backend(asked["region"]).keys.pop(asked["id"])

    def fail(self, asked):
        state.faults[asked["access_key"]] = {
            "status": asked.get("status", 400),
            "body": asked.get("body")
            or json.dumps({"__type": asked["code"], "message": asked.get("message", "")}),
            "times": asked.get("times"),
            "retry_after": asked.get("retry_after"),
            "operations": asked.get("operations"),
        }

    def heal(self, asked):
        state.faults.pop(asked["access_key"], None)

    def expire(self, asked):
        state.expired.add(asked["access_key"])

    def clock(self, asked):
        state.clocks[asked["access_key"]] = asked["seconds"]

    def seen(self, asked):
        return [one for one in state.seen if one.get("access_key") == asked["access_key"]]

    def calls(self, _):
        return dict(state.calls)

    def token(self, asked):
        state.tokens.add(asked["token"])

    def imds(self, asked):
        state.imds = asked.get("credentials")

    def ecs(self, asked):
        state.ecs = asked.get("credentials")

    def boto_encrypt(self, asked):
        answer = client(asked).encrypt(
            KeyId=asked["key"],
            Plaintext=base64.b64decode(asked["plaintext"]),
            EncryptionContext=asked["context"],
        )
        return {
            "blob": base64.b64encode(answer["CiphertextBlob"]).decode(),
            "key_id": answer["KeyId"],
        }

    def boto_decrypt(self, asked):
        answer = client(asked).decrypt(
            KeyId=asked["key"],
            CiphertextBlob=base64.b64decode(asked["blob"]),
            EncryptionContext=asked["context"],
        )
        return {"plaintext": base64.b64encode(answer["Plaintext"]).decode()}

    def resolve(self, asked):
        """Where the AWS SDK for Python would ask."""
        import boto3
        from botocore.config import Config

        found = []
        for region, fips, dualstack in asked["all"]:
            config = Config(use_fips_endpoint=fips, use_dualstack_endpoint=dualstack)
            made = boto3.client(
                "kms",
                region_name=region,
                config=config,
                aws_access_key_id="x",
                aws_secret_access_key="x",
            )
            found.append(made.meta.endpoint_url)
        return found


def main():
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", PORT, Front(app), threaded=True, request_handler=Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    commands = Commands()
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            # What calls the server again must not hold the lock.
            if asked["do"].startswith("boto_") or asked["do"] == "resolve":
                answer = getattr(commands, asked["do"])(asked)
            else:
                with lock:
                    answer = getattr(commands, asked["do"])(asked)
            print(json.dumps({"ok": answer}), flush=True)
        except Exception:
            print(json.dumps({"error": traceback.format_exc()}), flush=True)


main()

"""The official SDK of Azure for Python at the fake of tests/support/azure.

It knows nothing of sealblk. What it is told stands in JSON on standard input,
and what it found goes to standard output as JSON. Anything that the SDK does
not take ends in a traceback.
"""

import base64
import json
import os
import sys
from datetime import datetime, timedelta, timezone

from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.identity import (
    CertificateCredential,
    ClientSecretCredential,
    ManagedIdentityCredential,
    WorkloadIdentityCredential,
)
from azure.keyvault.keys import ApiVersion, KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm

told = json.load(sys.stdin)

# No name of this host is below the domain that tokens are for.
OPTIONS = {"verify_challenge_resource": False, "retry_total": 0}
AUTHORITY = {"authority": told["login"], "disable_instance_discovery": True}


def secret(client=None, value=None):
    return ClientSecretCredential(
        told["tenant"], client or told["officer"], value or told["secret"], **AUTHORITY
    )


def keys(credential, vault="vault", **more):
    return KeyClient(told[vault], credential, **OPTIONS, **more)


def crypto(credential, key_id, **more):
    return CryptographyClient(key_id, credential, **OPTIONS, **more)


def refused(kind, status, code, action):
    """What `action` is refused with, which has to be of that kind."""
    try:
        action()
    except kind as error:
        assert error.status_code == status, error
        inner = error.error.innererror if error.error else None
        found = (inner or {}).get("code") or error.error.code
        assert found == code, (found, error)
        return error.message
    raise AssertionError(f"{action} was not refused")


def tour():
    """A key from its making to its end, as its officer sees it."""
    client = keys(secret())
    for name, size, hsm in (("rsa-2048", 2048, False), ("rsa-3072", 3072, True)):
        made = client.create_rsa_key(name, size=size, hardware_protected=hsm)
        assert made.key_type == ("RSA-HSM" if hsm else "RSA"), made.key_type
        assert len(made.key.n) * 8 == size
        assert "unwrapKey" in made.key_operations
        got = client.get_key(name)
        assert got.id == made.id and got.properties.enabled
        assert got.properties.recovery_level == "Recoverable"
        # Wrapped here with the public key, and unwrapped by the service.
        local = crypto(secret(), made.id)
        wrapped = local.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, b"k" * 64)
        assert local.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, wrapped.encrypted_key).key == b"k" * 64

    # Versions, over several pages.
    made = [client.get_key("rsa-2048").id] + [client.rotate_key("rsa-2048").id for _ in range(4)]
    listed = client.list_properties_of_key_versions("rsa-2048")
    assert [one.id for one in listed] == made
    assert client.get_key("rsa-2048").id == made[-1]
    assert client.get_key("rsa-2048", made[0].rsplit("/")[-1]).id == made[0]

    # States.
    key = client.get_key("rsa-2048")
    cipher = crypto(secret(), key.id).wrap_key(KeyWrapAlgorithm.rsa_oaep_256, b"k" * 32).encrypted_key
    # Without the public key everything is asked of the service.
    remote = crypto(secret(told["client"]), key.id)
    remote._initialized = True
    unwrap = lambda: remote.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, cipher)
    wrap = lambda: remote.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, b"k" * 32)
    assert unwrap().key == b"k" * 32
    client.update_key_properties("rsa-2048", enabled=False)
    assert not client.get_key("rsa-2048").properties.enabled
    refused(HttpResponseError, 403, "KeyDisabled", unwrap)
    wrap()
    ended = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(minutes=1)
    client.update_key_properties("rsa-2048", enabled=True, expires_on=ended)
    assert client.get_key("rsa-2048").properties.expires_on == ended
    refused(HttpResponseError, 403, "KeyExpired", wrap)
    assert unwrap().key == b"k" * 32

    # Permissions.
    host = keys(secret(told["client"]))
    assert host.get_key("rsa-2048").id == key.id
    refused(HttpResponseError, 403, "ForbiddenByRbac", lambda: host.create_rsa_key("x"))

    # Deleted, recovered, deleted, purged.
    deleting = client.begin_delete_key("rsa-3072", _polling_interval=0)
    deleting.wait()
    assert deleting.result().scheduled_purge_date
    refused(ResourceNotFoundError, 404, "KeyNotFound", lambda: client.get_key("rsa-3072"))
    assert client.get_deleted_key("rsa-3072").recovery_id.endswith("/deletedkeys/rsa-3072")
    assert host.get_deleted_key("rsa-3072").name == "rsa-3072"
    refused(
        HttpResponseError, 409, "ObjectIsDeletedButRecoverable",
        lambda: client.create_rsa_key("rsa-3072"),
    )
    client.begin_recover_deleted_key("rsa-3072", _polling_interval=0).wait()
    assert client.get_key("rsa-3072").name == "rsa-3072"
    client.begin_delete_key("rsa-3072", _polling_interval=0).wait()
    client.purge_deleted_key("rsa-3072")
    refused(ResourceNotFoundError, 404, "KeyNotFound", lambda: client.get_deleted_key("rsa-3072"))

    # Older versions of the API, and none that never was.
    for version in (ApiVersion.V7_4, ApiVersion.V7_6):
        assert keys(secret(), api_version=version).get_key("rsa-2048").id == key.id

    # A Managed HSM.
    client = keys(secret(), "hsm")
    made = client.create_oct_key("aes", size=256, hardware_protected=True)
    assert made.key_type == "oct-HSM"
    remote = crypto(secret(), made.id)
    for algorithm in (
        KeyWrapAlgorithm.aes_256,
        KeyWrapAlgorithm.ckm_aes_key_wrap,
        KeyWrapAlgorithm.ckm_aes_key_wrap_pad,
    ):
        wrapped = remote.wrap_key(algorithm, b"k" * 64)
        assert remote.unwrap_key(algorithm, wrapped.encrypted_key).key == b"k" * 64
        refused(
            HttpResponseError, 400, "BadParameter",
            lambda: remote.unwrap_key(algorithm, wrapped.encrypted_key[:-8] + b"x" * 8),
        )
    return {}


def identities():
    """Each identity that the SDK has, too, gets a key."""
    with open(told["pem"], "rb") as file:
        pem = file.read()
    credentials = {
        "secret": secret(told["client"]),
        # PS256 with a SHA-256 thumbprint, as the SDK does it.
        "certificate": CertificateCredential(
            told["tenant"], told["client"], certificate_data=pem, **AUTHORITY
        ),
        "workload": WorkloadIdentityCredential(
            tenant_id=told["tenant"],
            client_id=told["client"],
            token_file_path=told["federated"],
            **AUTHORITY,
        ),
    }
    os.environ["AZURE_POD_IDENTITY_AUTHORITY_HOST"] = told["platform"]
    credentials["imds"] = ManagedIdentityCredential()
    credentials["imds, assigned"] = ManagedIdentityCredential(client_id=told["client"])
    for name, credential in credentials.items():
        assert keys(credential).get_key(told["key"]).name == told["key"], name
    os.environ["IDENTITY_ENDPOINT"] = told["platform"] + "/msi/token"
    os.environ["IDENTITY_HEADER"] = told["header"]
    app_service = ManagedIdentityCredential()
    assert keys(app_service).get_key(told["key"]).name == told["key"]

    words = []
    for client, value in ((told["client"], "wrong"), ("cccccccc-0000-4000-8000-000000000009", None)):
        try:
            keys(secret(client, value)).get_key(told["key"])
        except ClientAuthenticationError as error:
            words.append(error.message)
    return {"refusals": words}


def wrap():
    value = base64.b64decode(told["value"])
    wrapped = crypto(secret(), told["id"]).wrap_key(told["alg"], value)
    return {"kid": wrapped.key_id, "value": base64.b64encode(wrapped.encrypted_key).decode()}


def unwrap():
    value = base64.b64decode(told["value"])
    opened = crypto(secret(), told["id"]).unwrap_key(told["alg"], value)
    return {"value": base64.b64encode(opened.key).decode()}


print(json.dumps(globals()[sys.argv[1]]()))

"""Google's own clients, for tests: google-cloud-kms over REST, with google-auth.

usage: gcp_sdk.py BASE_URL

Reads one command a line, in JSON, and answers each with one line of JSON:
either what was asked for, or {"error": {...}} with what the client made of it.

    {"as": "file", "file": PATH}           the credentials to use from now on
    {"as": "metadata"}                     those of GCE_METADATA_HOST
    {"do": "get", "name": NAME}            a key, or a version of one
    {"do": "encrypt", "name", "plaintext", "aad"}      bytes are in base64
    {"do": "decrypt", "name", "ciphertext", "aad"}
    {"do": "rotate", "name"}               a new version, made the primary one
    {"do": "disable" | "enable" | "destroy" | "restore", "name"}
"""

import base64
import json
import sys
from urllib.parse import urlsplit

import google_crc32c
from google.api_core import exceptions
from google.auth import compute_engine, identity_pool
from google.auth import exceptions as auth_exceptions
from google.cloud import kms_v1
from google.cloud.kms_v1.services.key_management_service.transports import (
    KeyManagementServiceRestTransport,
)
from google.oauth2 import service_account
from google.protobuf import field_mask_pb2

SCOPES = ["https://www.googleapis.com/auth/cloudkms"]
State = kms_v1.CryptoKeyVersion.CryptoKeyVersionState


def crc(data):
    return google_crc32c.value(data)


def identity(command):
    if command["as"] == "metadata":
        return compute_engine.Credentials()
    with open(command["file"]) as file:
        info = json.load(file)
    if info["type"] == "service_account":
        return service_account.Credentials.from_service_account_info(info, scopes=SCOPES)
    return identity_pool.Credentials.from_info(info, scopes=SCOPES)


def connect(command):
    credentials = identity(command)
    base = urlsplit(sys.argv[1])
    transport = KeyManagementServiceRestTransport(
        host=base.netloc, credentials=credentials, url_scheme=base.scheme
    )
    return kms_v1.KeyManagementServiceClient(transport=transport)


def version_json(version):
    return {
        "name": version.name,
        "state": version.state.name,
        "algorithm": version.algorithm.name,
        "protection_level": version.protection_level.name,
        "destroy_time": version.destroy_time.isoformat() if version.destroy_time else None,
    }


def get(client, command):
    name = command["name"]
    if "/cryptoKeyVersions/" in name:
        return version_json(client.get_crypto_key_version(name=name, retry=None))
    key = client.get_crypto_key(name=name, retry=None)
    return {"name": key.name, "purpose": key.purpose.name, "primary": version_json(key.primary)}


def encrypt(client, command):
    plaintext = base64.b64decode(command["plaintext"])
    aad = base64.b64decode(command["aad"])
    request = {
        "name": command["name"],
        "plaintext": plaintext,
        "additional_authenticated_data": aad,
        "plaintext_crc32c": crc(plaintext) ^ command.get("damage", 0),
        "additional_authenticated_data_crc32c": crc(aad),
    }
    answer = client.encrypt(request=request, retry=None)
    return {
        "name": answer.name,
        "ciphertext": base64.b64encode(answer.ciphertext).decode(),
        "verified": answer.verified_plaintext_crc32c
        and answer.verified_additional_authenticated_data_crc32c,
        "intact": crc(answer.ciphertext) == answer.ciphertext_crc32c,
        "protection_level": answer.protection_level.name,
    }


def decrypt(client, command):
    ciphertext = base64.b64decode(command["ciphertext"])
    aad = base64.b64decode(command["aad"])
    request = {
        "name": command["name"],
        "ciphertext": ciphertext,
        "additional_authenticated_data": aad,
        "ciphertext_crc32c": crc(ciphertext),
        "additional_authenticated_data_crc32c": crc(aad),
    }
    answer = client.decrypt(request=request, retry=None)
    return {
        "plaintext": base64.b64encode(answer.plaintext).decode(),
        "intact": crc(answer.plaintext) == answer.plaintext_crc32c,
        "used_primary": answer.used_primary,
    }


def rotate(client, command):
    version = client.create_crypto_key_version(
        parent=command["name"], crypto_key_version=kms_v1.CryptoKeyVersion(), retry=None
    )
    number = version.name.rsplit("/", 1)[1]
    key = client.update_crypto_key_primary_version(
        name=command["name"], crypto_key_version_id=number, retry=None
    )
    return {"primary": version_json(key.primary)}


def set_state(client, command, state):
    version = kms_v1.CryptoKeyVersion(name=command["name"], state=state)
    mask = field_mask_pb2.FieldMask(paths=["state"])
    changed = client.update_crypto_key_version(
        crypto_key_version=version, update_mask=mask, retry=None
    )
    return version_json(changed)


ACTIONS = {
    "get": get,
    "encrypt": encrypt,
    "decrypt": decrypt,
    "rotate": rotate,
    "disable": lambda client, command: set_state(client, command, State.DISABLED),
    "enable": lambda client, command: set_state(client, command, State.ENABLED),
    "destroy": lambda client, command: version_json(
        client.destroy_crypto_key_version(name=command["name"], retry=None)
    ),
    "restore": lambda client, command: version_json(
        client.restore_crypto_key_version(name=command["name"], retry=None)
    ),
}


def details(error):
    return {
        "kind": type(error).__name__,
        "message": str(error.message),
        "reason": error.reason,
        "metadata": dict(error.metadata or {}),
        "violations": [
            violation["type"]
            for detail in error.details
            for violation in detail.get("violations", [])
        ],
    }


client = None
for line in sys.stdin:
    command = json.loads(line)
    try:
        if "as" in command:
            client = connect(command)
            answer = {}
        else:
            answer = ACTIONS[command["do"]](client, command)
    except exceptions.GoogleAPICallError as error:
        answer = {"error": details(error)}
    except auth_exceptions.GoogleAuthError as error:
        answer = {"error": {"kind": type(error).__name__, "message": str(error)}}
    print(json.dumps(answer), flush=True)

"""Plugins of the Kubernetes KMS API v2, for tests.

usage: k8s_plugin.py PROTO SCRATCH

Reads one command a line, and answers each with one line:

    start DIR   serves DIR/kms.sock, as DIR/state.json says
    stop DIR    ends that, and removes the socket

and ends when there are no more. state.json is read anew for each request:

    keys     {ID: {"key": HEX, "enabled": BOOL}}, AES-256
    current  the ID of the key to encrypt with
    version, healthz
             what Status says; healthz tells by itself of a disabled key
    code     {METHOD: [gRPC code, text]}: how this method fails
    echo     whether Encrypt gives out what it is given
    silent   [METHOD, …]: these give no answer
    answer   {METHOD: {field: value}}: what the answer has in place of the
             right value; bytes are in hex; "raw" is all of it

Each request is written to DIR/requests.jsonl, without what is secret in it.
"""

import json
import os
import sys
import threading
from concurrent import futures

import grpc
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from grpc_tools import protoc

STAMP = "stamp.kms.example.com"


def compiled(proto, scratch):
    folder = os.path.dirname(os.path.abspath(proto))
    status = protoc.main(["protoc", f"-I{folder}", f"--python_out={scratch}", proto])
    if status:
        sys.exit(f"{proto} does not compile")
    sys.path.insert(0, scratch)
    import kms_v2_pb2

    return kms_v2_pb2


class Plugin:
    def __init__(self, directory):
        self.directory = directory
        self.over = threading.Event()
        # A silent method takes a thread until the plugin ends.
        self.server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
        names = ["Status", "Encrypt", "Decrypt"]
        handlers = {name: self.handler(name) for name in names}
        service = grpc.method_handlers_generic_handler("v2.KeyManagementService", handlers)
        self.server.add_generic_rpc_handlers((service,))
        self.server.add_insecure_port(f"unix:{directory}/kms.sock")
        self.server.start()
        os.chmod(f"{directory}/kms.sock", 0o660)

    def stop(self):
        self.over.set()
        self.server.stop(None).wait()
        if os.path.exists(f"{self.directory}/kms.sock"):
            os.unlink(f"{self.directory}/kms.sock")

    def handler(self, name):
        question = getattr(pb, f"{name}Request")
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self.answer(name, request, context),
            request_deserializer=question.FromString,
            response_serializer=lambda answer: answer,
        )

    def answer(self, name, request, context):
        with open(f"{self.directory}/state.json") as file:
            state = json.load(file)
        seen = {"method": name, "time_remaining": context.time_remaining()}
        for field in ["uid", "key_id"]:
            seen[field] = getattr(request, field, None)
        if name == "Encrypt":
            seen["length"] = len(request.plaintext)
        with open(f"{self.directory}/requests.jsonl", "a") as file:
            file.write(json.dumps(seen) + "\n")
        if name in state.get("silent", []):
            self.over.wait()
        if name in state.get("code", {}):
            code, text = state["code"][name]
            context.abort(getattr(grpc.StatusCode, code), text)
        answer = getattr(self, name.lower())(state, request, context)
        for field, value in state.get("answer", {}).get(name, {}).items():
            if field == "raw":
                return bytes.fromhex(value)
            if field == "annotations":
                answer.annotations.clear()
                for key, text in value.items():
                    answer.annotations[key] = bytes.fromhex(text)
            elif field in ("ciphertext", "plaintext"):
                setattr(answer, field, bytes.fromhex(value))
            else:
                setattr(answer, field, value)
        return answer.SerializeToString()

    def status(self, state, request, context):
        current = state["keys"].get(state["current"])
        healthz = state["healthz"]
        if current is None:
            healthz = f"key not found: {state['current']}"
        elif not current["enabled"]:
            healthz = f"key {state['current']} is disabled"
        return pb.StatusResponse(
            version=state["version"], healthz=healthz, key_id=state["current"]
        )

    def key(self, state, key_id, context):
        key = state["keys"].get(key_id)
        if key is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no key {key_id}")
        if not key["enabled"]:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"key {key_id} is disabled")
        return AESGCM(bytes.fromhex(key["key"]))

    def encrypt(self, state, request, context):
        key_id = state["current"]
        key = self.key(state, key_id, context)
        nonce = os.urandom(12)
        ciphertext = nonce + key.encrypt(nonce, request.plaintext, key_id.encode())
        return pb.EncryptResponse(
            ciphertext=request.plaintext if state.get("echo") else ciphertext,
            key_id=key_id,
            annotations={STAMP: b"kept"},
        )

    def decrypt(self, state, request, context):
        key = self.key(state, request.key_id, context)
        if dict(request.annotations) != {STAMP: b"kept"}:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the annotations are not mine")
        nonce, rest = request.ciphertext[:12], request.ciphertext[12:]
        try:
            plaintext = key.decrypt(nonce, rest, request.key_id.encode())
        except (InvalidTag, ValueError):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the ciphertext is not mine")
        return pb.DecryptResponse(plaintext=plaintext)


pb = compiled(sys.argv[1], sys.argv[2])
plugins = {}
for line in sys.stdin:
    command, directory = line.strip().split(" ", 1)
    if command == "start":
        plugins[directory] = Plugin(directory)
    else:
        plugins.pop(directory).stop()
    print("done", flush=True)
for plugin in plugins.values():
    plugin.stop()

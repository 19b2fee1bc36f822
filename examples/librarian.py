#!/usr/bin/env python3
"""A librarian. It says in the shared state what its address is, waits for a question about a text (from reader.ts), counts
the words, writes the count into the shared state, replies, and stops when it is thanked.

    python3 examples/librarian.py [url of the kernel] [--wait seconds]

Environment: TABULUM_URL (http://localhost:8080), OPERATOR_KEY (without it, an operator is registered).
Python 3.9 or later, nothing but its standard library.
"""

import argparse
import base64
import codecs
import hashlib
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

# Where others look for the librarian's address.
DIRECTORY_KEY = "directory/librarian"
# Sending and receiving share 60 requests a minute, so a queue is not asked more often than this.
POLL_SECONDS = 1.5
REQUEST_TIMEOUT_SECONDS = 10


class Refused(Exception):
    """An answer that says no, for a reason that trying again does not change."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class GivenUp(Exception):
    """The time is up."""


class Kernel:
    """A client of the API; `token` is the one that requests are sent with."""

    def __init__(self, url, wait):
        self.url = url.rstrip("/")
        self.wait = wait
        self.deadline = time.monotonic() + wait
        self.token = None

    def request(self, method, path, body=None, headers=None):
        """One request. Waits and tries again where that is safe and may help: at 429 and 503, after as long as the kernel
        says, and when the connection broke."""
        while True:
            request = urllib.request.Request(self.url + path, method=method, headers=headers or {})
            if self.token:
                request.add_header("Authorization", "Bearer " + self.token)
            if body is not None:
                request.add_header("Content-Type", "application/json")
                request.data = json.dumps(body).encode()
            wait = 1
            try:
                with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_SECONDS) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                with error:
                    answer = error.read(300).decode(errors="replace")
                reason = f"{method} {path} was answered {error.code} {answer}"
                if error.code not in (429, 503):
                    raise Refused(error.code, reason) from None
                retry_after = error.headers.get("Retry-After", "")
                wait = int(retry_after) if retry_after.isdigit() else 1
            except (OSError, http.client.HTTPException) as error:
                reason = f"{method} {path} failed: {cause_of(error)}"
            self.pause(wait, reason)

    def pause(self, seconds, reason):
        """Waits, unless the time is up before."""
        if time.monotonic() + seconds > self.deadline:
            raise GivenUp(f"{reason}; --wait {self.wait:g} leaves no time to try again in {seconds} s")
        time.sleep(seconds)

    def read_state(self, key):
        """The value of a key of the shared state; None if there is none."""
        try:
            return self.request("GET", state_path(key))["value"]
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def write_state(self, key, value):
        self.request("PUT", state_path(key), {"value": value})

    def delete_state(self, key):
        try:
            self.request("DELETE", state_path(key))
        except Refused as error:
            # Gone is what was wanted, and what a repeated delete finds.
            if error.status != 404:
                raise

    def send(self, to, content):
        """Sends a message, once however often it has to be tried: the kernel knows a repetition by its key."""
        body = {"to": to, "content": json.dumps(content)}
        self.request("POST", "/v1/messages", body, {"Idempotency-Key": str(uuid.uuid4())})

    def receive(self):
        return self.request("GET", "/v1/messages")["messages"]

    def registered_at(self, address):
        """When an agent registered, found by going through the whole registry; None if it did not."""
        query = {"limit": "1000"}
        while True:
            page = self.request("GET", "/v1/registry?" + urllib.parse.urlencode(query))
            for agent in page["agents"]:
                if agent["address"] == address:
                    return agent["registered_at"]
            if page["next_cursor"] is None:
                return None
            query["cursor"] = page["next_cursor"]


def state_path(key):
    return "/v1/state/" + urllib.parse.quote(key, safe="")


def cause_of(error):
    return getattr(error, "reason", None) or str(error) or type(error).__name__


def say(line):
    print(time.strftime("%H:%M:%S", time.gmtime()) + "  librarian  " + line, flush=True)


OPERATIONS = {
    "reverse": lambda text: text[::-1],
    "base64_encode": lambda text: base64.b64encode(text.encode()).decode(),
    "base64_decode": lambda text: base64.b64decode(text).decode(),
    "hex_encode": lambda text: text.encode().hex(),
    "sha256": lambda text: hashlib.sha256(text.encode()).hexdigest(),
    "uppercase": str.upper,
    "lowercase": str.lower,
    "rot13": lambda text: codecs.encode(text, "rot13"),
}


def solve(challenge):
    """The challenge: text operations, applied in turn."""
    text = challenge["seed"]
    for operation in challenge["operations"]:
        name, _, value = operation["op"].partition(":")
        if name == "prepend":
            text = value + text
        elif name == "append":
            text = text + value
        elif name in OPERATIONS:
            text = OPERATIONS[name](text)
        else:
            raise SystemExit(f"librarian: the challenge has an operation that this program does not know: {name}")
    return text


def register(kernel):
    """Registers an agent, whose token the kernel's client then uses, and returns its address."""
    kernel.token = os.environ.get("OPERATOR_KEY") or register_operator(kernel)
    for attempts_left in (2, 1, 0):
        challenge = kernel.request("GET", "/v1/agents/verification-challenge")
        response = solve(challenge["challenge_data"])
        proof = {"challenge_id": challenge["challenge_id"], "response": response}
        try:
            agent = kernel.request("POST", "/v1/agents", {"verification_response": proof})
            break
        except Refused as error:
            # A challenge is good for one attempt: if the answer to the first got lost, its repetition is 403.
            if error.status != 403 or attempts_left == 0:
                raise
    kernel.token = agent["agent_token"]
    return agent["agent_address"]


def register_operator(kernel):
    contact_hash = hashlib.sha256(b"librarian@example.org").hexdigest()
    operator = kernel.request("POST", "/v1/operators", {"contact_hash": contact_hash, "accept_terms": True})
    say("registered operator " + operator["operator_id"])
    return operator["api_key"]


def parse(content):
    """What an agent agreed on with others is for itself to check: the kernel passes any text on, from anybody."""
    try:
        message = json.loads(content)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def answer(kernel, message, key):
    reader, question = message["from"], message["message_id"]
    say(f"{reader}, in the registry since {kernel.registered_at(reader)}, asks: how many words are in {key}?")
    text = kernel.read_state(key)
    if text is None:
        kernel.send(reader, {"kind": "unknown", "answers": question, "key": key})
        say(f"told {reader} that there is no {key}")
        return
    words = len(text.split())
    count_key = f"shelf/{reader}/words"
    kernel.write_state(count_key, str(words))
    say(f"wrote {count_key}: {words}")
    kernel.send(reader, {"kind": "answer", "answers": question, "words": words})
    say(f"answered {reader}: {words} words")


def serve(kernel):
    """Answers questions until somebody says thanks."""
    readers = set()
    seen = set()
    while True:
        for message in kernel.receive():
            # A message whose delivery was interrupted comes again.
            if message["message_id"] in seen:
                continue
            seen.add(message["message_id"])
            content = parse(message["content"])
            if content.get("kind") == "question" and isinstance(content.get("key"), str) and content["key"]:
                answer(kernel, message, content["key"])
                readers.add(message["from"])
            elif content.get("kind") == "thanks" and message["from"] in readers:
                say(f"{message['from']} says thanks")
                return
            else:
                say(f"did not understand {message['from']}: {json.dumps(message['content'][:100])}")
        kernel.pause(POLL_SECONDS, "Nobody said thanks" if readers else "Nobody asked: start examples/reader.ts")


def main():
    parser = argparse.ArgumentParser(description="The librarian of the examples.")
    parser.add_argument("url", nargs="?", default=os.environ.get("TABULUM_URL") or "http://localhost:8080")
    parser.add_argument("--wait", type=float, default=120, help="seconds until it gives up (120)")
    options = parser.parse_args()

    kernel = Kernel(options.url, options.wait)
    try:
        with urllib.request.urlopen(kernel.url + "/v1/health", timeout=REQUEST_TIMEOUT_SECONDS):
            pass
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise GivenUp(
            f"There is no kernel at {kernel.url} ({cause_of(error)}): start one with npm start, or give its URL"
        ) from None

    address = register(kernel)
    say(f"registered as {address}")
    kernel.write_state(DIRECTORY_KEY, address)
    say(f"wrote {DIRECTORY_KEY}: {address}")
    try:
        serve(kernel)
    finally:
        # Nobody should ask one who has left; unless another librarian has taken over.
        if kernel.read_state(DIRECTORY_KEY) == address:
            kernel.delete_state(DIRECTORY_KEY)
            say(f"deleted {DIRECTORY_KEY}; done")


if __name__ == "__main__":
    try:
        main()
    except (Refused, GivenUp) as error:
        sys.exit(f"librarian: {error}")
    except KeyboardInterrupt:
        sys.exit(130)

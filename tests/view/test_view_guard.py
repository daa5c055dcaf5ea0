"""Who is let in, and what a page may do: each line of the security model."""

import base64
import re

import pytest
from served import BASE, TOKEN, Client, saved

from tracin.view.guard import POLICY, media_key


def outside(client: Client, path: str, **headers):
    """As somebody without the token asks."""
    return client.get(path, headers={"authorization": "", **headers})


@pytest.mark.parametrize(
    "given",
    [None, "", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", "Bearer "],
)
@pytest.mark.parametrize("path", ["about", "rows", "why?row=0", "export?format=csv", "nothing"])
def test_without_the_token_the_api_says_nothing(client, given, path):
    del client.headers["authorization"]
    headers = {} if given is None else {"authorization": given}

    answer = client.get(f"/api/{path}", headers=headers)

    assert answer.status_code == 401
    assert answer.json()["error"].startswith("This needs the token: open the address")


def test_a_token_elsewhere_than_in_its_header_does_not_count(client):
    del client.headers["authorization"]
    client.cookies.set("token", TOKEN)

    assert client.get(f"/api/about?token={TOKEN}").status_code == 401


def test_no_answer_sets_a_cookie_or_holds_the_token(client):
    for path in ("/", "/static/viewer.js", "/api/about", "/api/rows", "/api/none", "/none"):
        answer = client.get(path)
        assert "set-cookie" not in answer.headers
        assert TOKEN not in answer.text


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8765",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1:8765@evil.example",
        "127.0.0.1/",
        "127.0.0.1:8765/../",
        "0.0.0.0",
        "",
        "127.0.0.2",
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/about", "/static/viewer.js"])
def test_a_forged_host_is_refused(client, host, path):
    assert client.get(path, headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "LOCALHOST:65535", "[::1]:9"])
def test_this_machine_is_let_in_at_any_port(client, host):
    assert client.get("/api/about", headers={"host": host}).status_code == 200


def test_two_hosts_are_none(client):
    bearer = ("authorization", f"Bearer {TOKEN}")
    headers = [("host", "127.0.0.1"), ("host", "evil.example"), bearer]

    assert client.get("/api/about", headers=headers).status_code == 421


def test_a_name_of_a_proxy_is_let_in_where_it_was_allowed(tmp_path, opened):
    client = opened(saved(tmp_path), hosts=("Hub.example",))

    assert client.get("/api/about", headers={"host": "hub.example"}).status_code == 200
    assert client.get("/api/about", headers={"host": "other.example"}).status_code == 421


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:8765", "http://127.0.0.1:1", "file://"],
)
def test_another_origin_is_refused_even_with_the_token(client, origin):
    for answer in (
        client.get("/api/about", headers={"origin": origin}),
        client.post("/api/undo", json={"tab": "a"}, headers={"origin": origin}),
    ):
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_the_same_origin_is_let_in(client):
    assert client.get("/api/about", headers={"origin": BASE}).status_code == 200


def test_another_site_may_not_even_ask_whether_it_may(client):
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}

    answer = client.options("/api/decide", headers=asked)

    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path", ["/", "/static/viewer.js", "/api/about", "/api/nothing", "/nothing"]
)
def test_every_answer_carries_the_headers(client, path):
    headers = client.get(path).headers

    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in headers
    if path.startswith(("/api", "/static")) or path == "/":
        assert headers["cache-control"] == "no-store"


def test_the_policy_lets_nothing_in_from_elsewhere():
    assert "default-src 'none'" in POLICY
    for word in ("unsafe", "http:", "https:", "*", "data:", "blob:"):
        assert word not in POLICY
    assert "require-trusted-types-for 'script'; trusted-types 'none'" in POLICY


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e%2f%2e%2e%2fcli%2fmain.py",
        "/static/",
        "/static//etc/passwd",
        "/static/%00",
        "/etc/passwd",
        "//etc/passwd",
        "/static/index.html%00.js",
        "/media/../static/viewer.js/",
    ],
)
def test_no_path_leads_out_of_the_page(client, path):
    answer = client.get(path)

    assert answer.status_code == 404
    assert "import" not in answer.text


def test_pictures_need_their_key_and_are_those_of_rows(tmp_path, opened):
    from tracin.view import save_examples

    png = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    save_examples(saved(tmp_path), pictures=[png] * 8)
    client = opened(tmp_path)
    key = media_key(TOKEN)

    good = outside(client, f"/media/{key}/3-64.webp")
    assert (good.status_code, good.headers["content-type"]) == (200, "image/webp")
    assert good.content[:4] == b"RIFF"
    for path in (
        f"/media/{'0' * 32}/3-64.webp",
        f"/media/{TOKEN}/3-64.webp",
        f"/media/{key}/8-64.webp",
        f"/media/{key}/-1-64.webp",
        f"/media/{key}/3-65.webp",
        f"/media/{key}/3-100000.webp",
        f"/media/{key}/../3-64.webp",
    ):
        assert outside(client, path).status_code == 404
    assert TOKEN not in key


def test_bodies_are_small_and_say_their_length(client):
    def chunks():
        yield b"{}"

    assert client.post("/api/undo", content=chunks()).status_code == 411
    assert client.post("/api/undo", content=b" " * 65_537).status_code == 413
    for length in ("-1", "x", "1" * 30):
        answer = client.post("/api/undo", content=b"{}", headers={"content-length": length})
        assert answer.status_code in (411, 413)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "POST"])
def test_other_methods_do_nothing(client, method):
    assert client.request(method, "/api/rows", content=b"{}").status_code == 405


def test_the_page_has_nothing_from_elsewhere_and_no_script_of_its_own(client):
    page, script = client.get("/").text, client.get("/static/viewer.js").text

    assert re.findall(r"<script[^>]*>", page) == ['<script type="module" src="static/viewer.js">']
    assert not re.search(r"https?://|style=|\son\w+=", page)
    assert set(re.findall(r"https?://[^\"\s]*", script)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xhtml",
    }
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "Function(", ".write("):
        assert word not in script


def test_all_urls_are_relative_so_that_a_proxy_can_serve_them_under_a_path(client):
    texts = client.get("/").text, client.get("/static/viewer.js").text

    for text in texts:
        assert not re.search(r"""(src|href)="/|["'`]/(api|media|static)""", text)

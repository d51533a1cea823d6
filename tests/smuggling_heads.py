"""Raw requests whose lines another parser could see differently."""

from __future__ import annotations

from .smuggling_bodies import Case, head

LINES = [
    *(
        Case(raw, "9112 §2.2", 400)
        for raw in (
            b"GET / HTTP/1.1\nHost: a\n\n",
            b"GET / HTTP/1.1\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: y\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: y\nZ: z\r\n\r\n",
            b"GET / HTTP/1.1\rHost: a\r\r",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: y\rZ: z\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\r\n\r\n",
            b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
            b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /\n HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\r\n" * 9 + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        )
    ),
    Case(b"\r\n" * 8 + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "9112 §2.2", b""),
    *(
        Case(head(field), "9110 §5.5", 400)
        for field in (b"X: y\x00", b"X: \x00", b"X: y\x01z", b"X: y\x7f", b"X: y\x1b[0m", b"X: y\x08")
    ),
    *(
        Case(head(field), "9110 §5.1", 400)
        for field in (
            b"X\x00: y",
            b": y",
            b"X",
            b"X y: z",
            b"X(: y",
            b"X\xe9: y",
            b"X\x7f: y",
            b'"X": y',
            b"X,Y: z",
            b"=",
        )
    ),
    *(Case(head(field), "9112 §5.1", 400) for field in (b"X : y", b"X\t: y", b"Host : a")),
    *(
        Case(head(field), "9112 §5.2", 400)
        for field in (b" X: y", b"\tX: y", b"X: y\r\n z", b"X: y\r\n\tz", b"X:\r\n y", b" ")
    ),
    *(
        Case(head(field), "9110 §5.5", b"")
        for field in (b"X: \xe9", b"X:", b"X: a\tb", b"X: " + b"y" * 1000, b"X_Y: z")
    ),
    # CGI and WSGI have one name for both: beside what a proxy says, or what frames the message, it is an attack.
    *(
        Case(head(field), "3875 §4.1.18", 400)
        for field in (
            b"X-Forwarded-For: 1.1.1.1\r\nX_Forwarded_For: 9.9.9.9",
            b"X_Forwarded_For: 9.9.9.9\r\nX-Forwarded-For: 1.1.1.1",
            b"X-Forwarded-For: 1.1.1.1\r\nx_forwarded-FOR: 9.9.9.9",
            b"Content_Length: 5",
            b"Transfer_Encoding: chunked",
            b"Content-Length: 0\r\ncontent_length: 5",
        )
    ),
    *(
        Case(head(field), "3875 §4.1.18", b"")
        for field in (b"X_Forwarded_For: 9.9.9.9", b"Cookie: _ga=1", b"X_Y: z\r\nX_Z: z", b"X_Y: z\r\nX_Y: z")
    ),
    Case(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", "9112 §2.2", 400),
    Case(b"GET / HTTP/1.1\r\n\tHost: a\r\n\r\n", "9112 §2.2", 400),
]

REQUEST_LINES = [
    *(
        Case(head(line=line), "9112 §3", 400)
        for line in (
            *(
                b"GET /",
                b"GET",
                b"GET / HTTP/1.1 ",
                b"GET / http/1.1",
                b"GET / HTTP /1.1",
                b"GET / HTTP/1,1",
                b"GET / HTTP/11",
            ),
            *(
                b"GET / HTTP/1.10",
                b"GET / HTTP/1",
                b"GET / HTTP/",
                b"GET / HTTPS/1.1",
                b"GET  / HTTP/1.1",
                b"GET /  HTTP/1.1",
            ),
            *(
                b"GET\t/ HTTP/1.1",
                b" GET / HTTP/1.1",
                b"GET / HTTP/1.1 x",
                b"GET /a b HTTP/1.1",
                b"G@T / HTTP/1.1",
                b"/ HTTP/1.1",
            ),
            *(
                b"GET /\x00 HTTP/1.1",
                b"GET /\x7f HTTP/1.1",
                b"GET /\xe9 HTTP/1.1",
                b"GET /\x0b HTTP/1.1",
                b"\x00GET / HTTP/1.1",
            ),
        )
    ),
    *(
        Case(head(line=b"GET / HTTP/" + version), "9112 §2.3", 505)
        for version in (b"2.0", b"1.2", b"0.9", b"3.0", b"9.9")
    ),
    Case(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "9113 §3.4", 505),
    Case(b"GET / HTTP/1.0\r\n\r\n", "9112 §3.2", b"", closes=True),
    Case(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "9112 §9.3", b"", closes=True),
    Case(head(b"Connection: close"), "9112 §9.3", b"", closes=True),
    Case(head(b"Connection: x, Close"), "9112 §9.3", b"", closes=True),
]

HOSTS = [
    Case(b"GET / HTTP/1.1\r\n\r\n", "9112 §3.2", 400),
    Case(head(b"Host: a"), "9112 §3.2", 400),
    Case(head(b"Host: b"), "9112 §3.2", 400),
    Case(head(b"hOST: a"), "9112 §3.2", 400),
    *(
        Case(head(host=b"Host: " + host + b"\r\n"), "9110 §7.2", 400)
        for host in (
            b"a b",
            b"a/b",
            b"a@b",
            b"a:80:80",
            b"a:x",
            b"a:-1",
            b"[::1",
            b"::1",
            b"a?b",
            b"a#b",
            b"a\\b",
            b'"a"',
            b"\xe9",
        )
    ),
    *(
        Case(head(host=b"Host: " + host + b"\r\n"), "9110 §7.2", b"")
        for host in (b"a", b"a:80", b"a:", b"[::1]", b"[::1]:80", b"127.0.0.1", b"", b"a%41", b"A-b.c_d")
    ),
    Case(b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", "9112 §3.2", 400),
]

TARGETS = [
    *(
        Case(head(line=b"GET " + target + b" HTTP/1.1"), "9112 §3.2", 400)
        for target in (
            *(
                b"*",
                b"a/b",
                b"?x",
                b"#f",
                b"/#f",
                b"/a?b#c",
                b"http://",
                b"http:///a",
                b"http://a b/",
                b"ftp://a/",
                b"a:80",
            ),
            *(b"http:/a", b"http://a@b/", b"http://[::1/", b"http://a:x/", b"\\", b"..", b"javascript:x"),
        )
    ),
    *(
        Case(head(line=b"GET " + target + b" HTTP/1.1"), "9112 §3.2", b"")
        for target in (
            b"/",
            b"//a/b",
            b"/%00",
            b"/a?b?c",
            b"/../../etc/passwd",
            b"/a;b",
            b"/http://a/",
            b"http://b/",
            b"http://b",
        )
    ),
    Case(head(line=b"OPTIONS * HTTP/1.1"), "9112 §3.2.4", b""),
    Case(head(line=b"CONNECT a:80 HTTP/1.1"), "9110 §9.3.6", 501),
    Case(head(line=b"CONNECT / HTTP/1.1"), "9110 §9.3.6", 501),
    Case(head(line=b"GET /" + b"a" * 70000 + b" HTTP/1.1"), "9110 §15.5.15", 414),
    Case(head(b"X: " + b"y" * 70000), "6585 §5", 431),
    Case(head(*[b"X: y"] * 101), "6585 §5", 431),
]

CASES = [*LINES, *REQUEST_LINES, *HOSTS, *TARGETS]

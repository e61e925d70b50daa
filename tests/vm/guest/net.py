#!/usr/bin/python3
"""Connections as a customer sees them, measured on the guest's own clock. Knows nothing of vervet.

net.py serve ADDRESS PORT [ADDRESS PORT …]   echoes what it gets; runs until it is killed
net.py time ADDRESS PORT COUNT               one line for each round trip on one connection, in ms
net.py connect ADDRESS PORT COUNT            one line for each new connection, in ms
net.py hold SECONDS ADDRESS PORT COUNT [ADDRESS PORT COUNT …]
                                             opens so many at once, asks each for a page and keeps them;
                                             "open" (something came back) or why not, one line for each
"""
import select
import socket
import sys
import time

PATIENCE = 20.0


def serve(places):
    poll, listeners, clients = select.epoll(), {}, {}
    for address, port in places:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(512)
        listeners[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)
    print("serving", flush=True)
    while True:
        for number, _ in poll.poll():
            if number in listeners:
                client, _ = listeners[number].accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()] = client
                poll.register(client, select.EPOLLIN)
                continue
            client = clients[number]
            try:
                data = client.recv(65536)
                if data:
                    client.sendall(data)
            except OSError:
                data = b""
            if not data:
                poll.unregister(client)
                clients.pop(number).close()


def opened(address, port, patience=PATIENCE):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family)
    sock.settimeout(patience)
    sock.connect((address, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def timed(deed):
    begun = time.monotonic()
    deed()
    print(f"{(time.monotonic() - begun) * 1e3:.3f}", flush=True)


def trips(address, port, count):
    sock = opened(address, port)

    def trip():
        sock.sendall(b"x")
        if sock.recv(16) != b"x":
            raise SystemExit("the other side hung up")

    for _ in range(count):
        timed(trip)


def connects(address, port, count):
    for _ in range(count):
        timed(lambda: opened(address, port).close())


def hold(seconds, places):
    held = []
    for address, port, count in places:
        for _ in range(count):
            try:
                sock = opened(address, port, 3.0)
                sock.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
                print("open" if sock.recv(16) else "closed", flush=True)
                held.append(sock)
            except OSError as error:
                print(type(error).__name__, flush=True)
    time.sleep(seconds)


def main(what, *rest):
    if what == "serve":
        serve([(rest[at], int(rest[at + 1])) for at in range(0, len(rest), 2)])
    elif what == "time":
        trips(rest[0], int(rest[1]), int(rest[2]))
    elif what == "connect":
        connects(rest[0], int(rest[1]), int(rest[2]))
    elif what == "hold":
        rest, seconds = rest[1:], float(rest[0])
        hold(seconds, [(rest[at], int(rest[at + 1]), int(rest[at + 2])) for at in range(0, len(rest), 3)])


main(*sys.argv[1:])

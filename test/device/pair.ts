// Sockets that keep message boundaries, as a TAP does.

import { AF, bind, close, connect, must, SOCK, socket } from '../../src/os/libc.ts'

let nextPort = 20_000 + (process.pid % 20_000)

/** Two UDP sockets connected to each other on the loopback interface. */
export function pair(): [number, number] {
  const address = (port: number) =>
    Uint8Array.of(AF.INET, 0, port >> 8, port & 255, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0)
  for (;;) {
    const ports = [nextPort++, nextPort++]
    const fds = ports.map(() => must(socket(AF.INET, SOCK.DGRAM | SOCK.NONBLOCK, 0), 'socket', 'udp'))
    const failed = fds.some((fd, i) => bind(fd, address(ports[i])) < 0)
    if (!failed) {
      for (const [i, fd] of fds.entries()) must(connect(fd, address(ports[1 - i])), 'connect', 'udp')
      return [fds[0], fds[1]]
    }
    for (const fd of fds) close(fd)
  }
}

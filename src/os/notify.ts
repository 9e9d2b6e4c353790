// What a service says to systemd: sd_notify(3), a datagram of lines to the socket in $NOTIFY_SOCKET.

import { AF, addressOf, close, MSG, must, SOCK, sendto, socket } from './libc.ts'

/** `struct sockaddr_un` with its path. */
const PATH_LIMIT = 107

/** A service manager that listens; every method is safe to call at any time and never throws. */
export interface ServiceManager {
  /** Half of the time after which a service that has not beat is taken for hung, ms; undefined when there is no watchdog. */
  readonly watchdogMs: number | undefined
  ready(status: string): void
  /** A new configuration is being read; `ready` ends it. */
  reloading(): void
  stopping(): void
  /** A line for people, as `systemctl status` shows it. */
  status(text: string): void
  /** Says that the service is alive. */
  beat(): void
  close(): void
}

/** The service manager that started this process, or one to whom nothing needs to be said. Throws DetourError. */
export function openServiceManager(env: NodeJS.ProcessEnv = process.env): ServiceManager {
  const path = env.NOTIFY_SOCKET ?? ''
  const address = socketAddress(path)
  const fd = address === undefined ? -1 : must(socket(AF.UNIX, SOCK.DGRAM, 0), 'socket', 'NOTIFY_SOCKET')
  function say(...lines: string[]): void {
    if (address === undefined || fd < 0) return
    const message = Buffer.from(lines.join('\n'))
    // NB: nothing here may stop the daemon: a manager that does not read loses what is said.
    sendto(fd, addressOf(message), message.length, MSG.DONTWAIT, addressOf(address), address.length)
  }
  return {
    watchdogMs: watchdogMs(env),
    ready: status => say('READY=1', `MAINPID=${process.pid}`, `STATUS=${line(status)}`),
    reloading: () => say('RELOADING=1', `MONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`),
    stopping: () => say('STOPPING=1'),
    status: text => say(`STATUS=${line(text)}`),
    beat: () => say('WATCHDOG=1'),
    close: () => {
      if (fd >= 0) close(fd)
    },
  }
}

// A path, or a name in the abstract namespace, written with @ for its first byte (unix(7)); undefined for what is neither.
function socketAddress(path: string): Uint8Array | undefined {
  const bytes = Buffer.from(path)
  if (!/^[/@]./.test(path) || bytes.length > PATH_LIMIT) return undefined
  if (path.startsWith('@')) bytes[0] = 0
  const end = path.startsWith('@') ? [] : [0]
  return Buffer.from([AF.UNIX, 0, ...bytes, ...end])
}

function watchdogMs({ WATCHDOG_USEC = '', WATCHDOG_PID }: NodeJS.ProcessEnv): number | undefined {
  if (!/^\d{1,15}$/.test(WATCHDOG_USEC) || Number(WATCHDOG_USEC) === 0) return undefined
  if (WATCHDOG_PID !== undefined && Number(WATCHDOG_PID) !== process.pid) return undefined
  return Number(WATCHDOG_USEC) / 2000
}

const line = (text: string) => text.replaceAll(/[\r\n]+/g, ' ')

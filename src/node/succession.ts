// The line between an active node process and those that may follow it: lines of JSON on one Unix socket, and on another, which the
// successor opens, the descriptors that they speak of.
//
//   successor                          active
//   hello { pid }               ─►
//                               ◄─     inheritance { text, fds }, or refused { reason }
//                               ◄─     change { text, fds }, as often as something changes; alive {}, ten times a second
//   take {}                     ─►                                     when it wants to be the active one
//                               ◄─     yours {}                        nothing is received any more
//   taken {}                    ─►
//                               ◄─     farewell { why }                ends on purpose: nobody is to take over
//   stop { how }                ─►                                     asks it to end
//
// A line that ends without a word means that the active process is dead. NB: whoever takes one for dead that is not receives beside
// it, so a successor that cannot keep up is told so, and one that cannot take what it is sent knows that it is its own fault.

import { chmodSync, renameSync, rmSync } from 'node:fs'
import { createServer, connect as netConnect, type Server, type Socket } from 'node:net'
import { DetourError } from '../errors.ts'
import { monotonicMs } from '../os/clock.ts'
import { close } from '../os/libc.ts'
import { acceptFrom, connectTo, listenAt, peerOf, receiveDescriptors, sendDescriptors } from '../os/passing.ts'
import { type Change, type Inheritance, pack, unpack } from './handover.ts'
import type { RunningNode } from './node.ts'

const ALIVE_MS = 100
/** How long a successor may take to begin, once it was told that it may. */
const TAKE_MS = 5000
/** A line is no longer than what a thousand attachments need. */
const LINE_LIMIT = 16 << 20

/** How a node ends: its interception left to a later process, or taken away. */
export type Ending = 'leave' | 'detach'
/** Why an active process says farewell; 'lost': only to a successor that cannot know all that it has any more. */
export type Farewell = 'stopped' | 'succeeded' | 'lost'

type Message =
  | { hello: { pid: number } }
  | { inheritance: Packed }
  | { refused: { reason: string } }
  | { change: Packed }
  | { alive: object }
  | { take: object }
  | { yours: object }
  | { taken: object }
  | { farewell: { why: Farewell } }
  | { stop: { how: Ending } }

interface Packed {
  text: string
  fds: number
}

const descriptorPath = (path: string, pid: number) => `${path}.${pid}`

/** Lines of JSON over a socket. */
class Line {
  private readonly socket: Socket
  private rest = ''

  /** `onEnd` gets what was wrong with what came, where it was this end that hung up for that. */
  constructor(socket: Socket, onMessage: (message: Message) => void, onEnd: (fault?: Error) => void) {
    let fault: Error | undefined
    this.socket = socket
    socket.setEncoding('utf8')
    socket.on('data', (text: string) => {
      const lines = (this.rest + text).split('\n')
      this.rest = lines.pop() as string
      try {
        if (this.rest.length > LINE_LIMIT) throw new SyntaxError('too long')
        for (const line of lines) onMessage(JSON.parse(line))
      } catch (error) {
        fault = error as Error
        socket.destroy()
      }
    })
    socket.on('error', () => {})
    socket.once('close', () => onEnd(fault))
  }

  send(message: Message): void {
    if (!this.socket.destroyed) this.socket.write(`${JSON.stringify(message)}\n`)
  }

  end(): void {
    this.socket.end()
  }

  destroy(): void {
    this.socket.destroy()
  }
}

/** A process that may follow this one. */
interface Heir {
  line: Line
  /** Where descriptors go; -1 before it has said hello. */
  fd: number
  pid: number
  /** Whether it has asked to be the active one. */
  waits: boolean
  /** Called when it has begun, or is gone. */
  settled?: (taken: boolean) => void
  unwatch?: () => void
}

export interface OfferOptions {
  /** Called when a successor, process `pid`, wants to be the active one, and again by `ask`: `give` tells it that it may, once nothing is received any more, and resolves with whether it has begun. */
  take(pid: number, give: () => Promise<boolean>): void
  /** Called when a successor asks this process to end. */
  stop(how: Ending): void
  log: (line: string) => void
}

/** What an active process holds out to its successors. */
export class Offer {
  private readonly node: RunningNode
  private readonly path: string
  private readonly options: OfferOptions
  private readonly server: Server
  private readonly heirs = new Set<Heir>()
  private readonly timer: NodeJS.Timeout

  private constructor(node: RunningNode, path: string, options: OfferOptions, server: Server) {
    this.node = node
    this.path = path
    this.options = options
    this.server = server
    server.on('connection', socket => this.welcome(socket))
    this.timer = setInterval(() => this.tell({ alive: {} }), ALIVE_MS)
  }

  /** Listens at a path, in place of whoever did before. Throws DetourError. */
  static async open(node: RunningNode, path: string, options: OfferOptions): Promise<Offer> {
    const server = createServer()
    const temporary = `${path}.${process.pid}.new`
    rmSync(temporary, { force: true })
    await new Promise<void>((resolve, reject) => {
      server.once('error', error => reject(new DetourError('system', `handover socket ${path}: ${error.message}`)))
      server.listen(temporary, resolve)
    })
    chmodSync(temporary, 0o600)
    renameSync(temporary, path)
    return new Offer(node, path, options, server)
  }

  /** Tells all successors why it ends, and hangs up. */
  close(why: Farewell): void {
    clearInterval(this.timer)
    this.tell({ farewell: { why } })
    for (const heir of this.heirs) heir.line.end()
    this.server.close()
  }

  /** Hangs up without a word, as if it had died. */
  abort(): void {
    clearInterval(this.timer)
    for (const heir of this.heirs) heir.line.destroy()
    this.server.close()
  }

  /** Asks again to take whoever has asked while another one was being taken. */
  ask(): void {
    for (const heir of this.heirs) if (heir.waits) this.options.take(heir.pid, () => this.give(heir))
  }

  private tell(message: Message): void {
    for (const { line, fd } of this.heirs) if (fd >= 0) line.send(message)
  }

  private welcome(socket: Socket): void {
    const line = new Line(
      socket,
      message => this.hear(heir, message),
      () => {
        this.heirs.delete(heir)
        heir.unwatch?.()
        if (heir.fd >= 0) close(heir.fd)
        heir.settled?.(false)
      },
    )
    const heir: Heir = { line, fd: -1, pid: 0, waits: false }
    this.heirs.add(heir)
  }

  private hear(heir: Heir, message: Message): void {
    if ('hello' in message && heir.fd < 0) this.bequeath(heir, message.hello.pid)
    else if ('take' in message && heir.unwatch !== undefined) {
      heir.waits = true
      this.options.take(heir.pid, () => this.give(heir))
    } else if ('taken' in message) heir.settled?.(true)
    else if ('stop' in message) this.options.stop(message.stop.how)
  }

  /** Gives a successor all that there is, and what changes of it. */
  private bequeath(heir: Heir, pid: number): void {
    try {
      const fd = connectTo(descriptorPath(this.path, pid))
      heir.fd = fd
      const peer = peerOf(fd)
      if (peer.uid !== process.geteuid?.()) throw new DetourError('permission', `process ${pid} is another user's`)
      heir.pid = peer.pid
      const inheritance = this.node.inheritance()
      if (inheritance === undefined) throw new DetourError('unsupported', 'this underlay cannot be handed over')
      heir.line.send({ inheritance: this.send(heir, inheritance) })
      heir.unwatch = this.node.watch(change => {
        try {
          heir.line.send({ change: this.send(heir, change) })
        } catch (error) {
          this.options.log(`successor ${pid}: ${(error as Error).message}`)
          heir.unwatch?.()
          heir.line.send({ farewell: { why: 'lost' } })
          heir.line.end()
        }
      })
    } catch (error) {
      this.options.log(`successor ${pid}: ${(error as Error).message}`)
      heir.line.send({ refused: { reason: (error as Error).message } })
    }
  }

  private send(heir: Heir, value: Inheritance | Change): Packed {
    const { text, fds } = pack(value)
    sendDescriptors(heir.fd, fds)
    return { text, fds: fds.length }
  }

  private give(heir: Heir): Promise<boolean> {
    return new Promise(resolve => {
      // NB: one that begins after all would be the second that receives.
      const timer = setTimeout(() => kill(heir.pid), TAKE_MS)
      heir.settled = taken => {
        clearTimeout(timer)
        heir.settled = undefined
        resolve(taken)
      }
      heir.line.send({ yours: {} })
    })
  }
}

/** An active process, as a successor sees it. */
export class Predecessor {
  /** Resolves when it has ended: with its farewell, or with 'dead'. */
  readonly ended: Promise<Farewell | 'dead'>
  /** Why it cannot be followed; '' where nothing is wrong. */
  fault = ''
  /** When it was last heard, ms of CLOCK_MONOTONIC. */
  heardMs = monotonicMs()
  /** Its process; 0 where it cannot be followed. */
  pid = 0
  /** What it has open; undefined where it cannot be handed over. */
  inheritance: Inheritance | undefined
  /** Takes what changes, in order; what comes before it is set waits. */
  private follower: ((change: Change) => void) | undefined
  private readonly waiting: Change[] = []
  private readonly line: Line
  private readonly path: string
  private listening: number
  private fd = -1
  private farewell: Farewell | 'dead' = 'dead'
  private yours: (() => void) | undefined
  private introduced: () => void = () => {}

  private constructor(socket: Socket, path: string, listening: number) {
    this.path = path
    this.listening = listening
    let end: (why: Farewell | 'dead') => void
    this.ended = new Promise(resolve => {
      end = resolve
    })
    const hear = (message: Message) => this.hear(message)
    this.line = new Line(socket, hear, fault => {
      this.closeDescriptors()
      this.fault = fault?.message ?? (this.farewell === 'lost' ? 'it has changed too fast' : '')
      this.introduced()
      end(fault === undefined ? this.farewell : 'lost')
    })
  }

  /** Meets the active process of a path; undefined when there is none. Throws DetourError. */
  static async meet(path: string): Promise<Predecessor | undefined> {
    const socket = await connected(path)
    if (socket === undefined) return undefined
    const own = descriptorPath(path, process.pid)
    rmSync(own, { force: true })
    let listening: number
    try {
      listening = listenAt(own)
    } catch (error) {
      socket.destroy()
      throw error
    }
    const met = new Predecessor(socket, path, listening)
    await new Promise<void>(resolve => {
      met.introduced = resolve
      met.line.send({ hello: { pid: process.pid } })
    })
    rmSync(own, { force: true })
    return met
  }

  /** Whether it has said farewell. */
  get isLeaving(): boolean {
    return this.farewell !== 'dead'
  }

  /** Has every change given to this function from now on, and those that came before. */
  follow(follower: (change: Change) => void): void {
    this.follower = follower
    for (const change of this.waiting.splice(0)) follower(change)
  }

  /** Asks for its place; resolves when it receives nothing any more, and says why. */
  async take(): Promise<'yours' | Farewell | 'dead'> {
    const yours = new Promise<'yours'>(resolve => {
      this.yours = () => resolve('yours')
    })
    this.line.send({ take: {} })
    return Promise.race([yours, this.ended])
  }

  /** Says that its place is taken. */
  taken(): void {
    this.line.send({ taken: {} })
  }

  /** Asks it to end. */
  stop(how: Ending): void {
    this.line.send({ stop: { how } })
  }

  /** Hangs up. */
  close(): void {
    this.line.end()
  }

  private hear(message: Message): void {
    this.heardMs = monotonicMs()
    if ('inheritance' in message) {
      this.inheritance = this.receive(message.inheritance) as Inheritance
      this.introduced()
    } else if ('refused' in message) this.introduced()
    else if ('change' in message) this.pass(this.receive(message.change) as Change)
    else if ('yours' in message) this.yours?.()
    else if ('farewell' in message) this.farewell = message.farewell.why
  }

  private pass(change: Change): void {
    if (this.follower === undefined) this.waiting.push(change)
    else this.follower(change)
  }

  private receive({ text, fds }: Packed): unknown {
    if (this.fd < 0) {
      this.fd = acceptFrom(this.listening)
      this.pid = peerOf(this.fd).pid
    }
    return unpack(text, receiveDescriptors(this.fd, fds))
  }

  private closeDescriptors(): void {
    close(this.listening)
    if (this.fd >= 0) close(this.fd)
    rmSync(descriptorPath(this.path, process.pid), { force: true })
  }
}

/** One that has ended by now is fine. */
export function kill(pid: number): void {
  try {
    if (pid > 0) process.kill(pid, 'SIGKILL')
  } catch {
    // Gone already.
  }
}

function connected(path: string): Promise<Socket | undefined> {
  return new Promise(resolve => {
    const socket = netConnect(path)
    socket.once('connect', () => resolve(socket))
    socket.once('error', () => resolve(undefined))
  })
}

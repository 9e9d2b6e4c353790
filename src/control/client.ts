// The control socket's client. Light on purpose: no native code, so that a short-lived process starts fast.

import { connect, type Socket } from 'node:net'
import { DetourError, type ErrorCode } from '../errors.ts'
import {
  decodeReply,
  encodeRequest,
  type Failure,
  FrameReader,
  type Reply,
  type ReplyBodies,
  type RequestBodies,
  type Topic,
  VERSIONS,
} from './protocol.ts'

/** The server understood and refused: `failure` says why. */
export class ControlRefusal extends DetourError {
  readonly failure: Failure['code']

  constructor(failure: Failure['code'], message: string) {
    super(failure === 'permission' ? 'permission' : 'system', message)
    this.failure = failure
  }
}

/** A connection that has said hello. */
export interface ControlClient {
  /** The protocol version that both ends speak. */
  readonly version: number
  /** Asks one thing. Throws ControlRefusal when the server refuses, DetourError: gone when it hung up, system when it is silent for too long. */
  ask<T extends Topic>(topic: T, body: RequestBodies[T]): Promise<ReplyBodies[T]>
  close(): void
}

interface Waiting {
  topic: Topic
  resolve(reply: never): void
  reject(error: Error): void
  timer: NodeJS.Timeout
}

/**
 * Connects and negotiates the version. `timeoutMs` bounds the connecting and each answer. Throws DetourError: not-found
 * when nobody listens there, gone when it hung up.
 */
export async function connectControl(path: string, timeoutMs = 5000): Promise<ControlClient> {
  const connection = new Connection(await open(path, timeoutMs), path, timeoutMs)
  try {
    connection.version = (await connection.ask('hello', VERSIONS)).version
    return connection
  } catch (error) {
    connection.close()
    throw error
  }
}

function open(path: string, timeoutMs: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(path)
    const timer = setTimeout(() => socket.destroy(new Error('no answer in time')), timeoutMs)
    socket.once('connect', () => {
      clearTimeout(timer)
      socket.removeAllListeners('error')
      resolve(socket)
    })
    socket.once('error', error => {
      clearTimeout(timer)
      reject(new DetourError(...refusal(path, (error as NodeJS.ErrnoException).code, error.message), { cause: error }))
    })
  })
}

function refusal(path: string, errno: string | undefined, message: string): [ErrorCode, string] {
  if (errno === 'ENOENT') return ['not-found', `control socket ${path} does not exist; is Detour running?`]
  if (errno === 'ECONNREFUSED') {
    return ['not-found', `control socket ${path}: nobody listens; the process that made it is gone`]
  }
  if (errno === 'EACCES')
    return ['permission', `control socket ${path} belongs to another user; run as that user or root`]
  return ['system', `control socket ${path}: ${message}`]
}

class Connection implements ControlClient {
  version = 0
  private readonly socket: Socket
  private readonly path: string
  private readonly timeoutMs: number
  private readonly waiting = new Map<number, Waiting>()
  private readonly reader = new FrameReader()
  private lastId = 0
  private ended: Error | undefined

  constructor(socket: Socket, path: string, timeoutMs: number) {
    this.socket = socket
    this.path = path
    this.timeoutMs = timeoutMs
    socket.on('data', chunk => this.received(chunk))
    socket.on('error', error => this.end(this.error(error.message, 'gone')))
    socket.on('close', () => this.end(this.error('the other side closed the connection', 'gone')))
  }

  ask<T extends Topic>(topic: T, body: RequestBodies[T]): Promise<ReplyBodies[T]> {
    if (this.ended !== undefined) return Promise.reject(this.ended)
    const id = ++this.lastId
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.end(this.error(`no answer within ${this.timeoutMs} ms`)), this.timeoutMs)
      this.waiting.set(id, { topic, resolve, reject, timer })
      this.socket.write(encodeRequest(id, topic, body))
    })
  }

  close(): void {
    this.end(this.error('closed'))
  }

  private received(chunk: Uint8Array): void {
    try {
      this.reader.push(chunk)
      for (let content = this.reader.next(); content !== undefined; content = this.reader.next()) {
        this.settle(decodeReply(content))
      }
    } catch (error) {
      this.end(this.error(`not Detour's control protocol (${(error as Error).message})`))
    }
  }

  private settle(reply: Reply): void {
    if (reply.body === 'failure' && reply.id === 0) this.end(this.refusal(reply.failure!))
    const waiting = this.waiting.get(reply.id)
    if (waiting === undefined) return
    this.waiting.delete(reply.id)
    clearTimeout(waiting.timer)
    if (reply.body === waiting.topic) waiting.resolve(reply[waiting.topic] as never)
    else if (reply.body === 'failure') waiting.reject(this.refusal(reply.failure!))
    else waiting.reject(this.error(`an answer to ${waiting.topic} that is none`))
  }

  private end(error: Error): void {
    if (this.ended !== undefined) return
    this.ended = error
    this.socket.destroy()
    for (const { reject, timer } of this.waiting.values()) {
      clearTimeout(timer)
      reject(error)
    }
    this.waiting.clear()
  }

  private refusal({ code, message }: Failure): ControlRefusal {
    return new ControlRefusal(code, `control socket ${this.path}: ${message}`)
  }

  private error(message: string, code: ErrorCode = 'system'): DetourError {
    return new DetourError(code, `control socket ${this.path}: ${message}`)
  }
}

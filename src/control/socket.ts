// The control socket's server: answers questions about a running face, whatever its clients send.

import { chmodSync, existsSync, lstatSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { DROP_COUNT, dropName, dropText } from '../drop.ts'
import { DetourError } from '../errors.ts'
import { COLUMN } from '../memory/counters.ts'
import { connectControl } from './client.ts'
import { OperationFailure, type Operations } from './operations.ts'
import { packageVersion } from './package.ts'
import { peerCredentials } from './peer.ts'
import {
  type DropRow,
  decodeRequest,
  encodeReply,
  type Failure,
  FRAME_LIMIT,
  FrameReader,
  type Reply,
  type Request,
  type StageRow,
  VERSIONS,
} from './protocol.ts'
import { prepareDirectory, socketDirectory, socketPath } from './registry.ts'
import {
  type FaultControl,
  FLOW_LIMIT,
  FLOW_ORDERS,
  type FlowQuery,
  type Source,
  type WorkerCounters,
} from './source.ts'

/** Where the server listens and how much it bears. */
export interface ControlOptions {
  /** The socket; the face's default when not given. */
  path?: string
  /** What clients may have it do; only a node daemon has any. */
  operations?: Operations
  /** More clients than this are turned away; default 32. */
  clients?: number
  /** How long a client may take to say hello, to finish a frame, or to read an answer; default 5000 ms. */
  patienceMs?: number
}

/** A listening control socket: the thread that opened it only. */
export interface ControlServer {
  readonly path: string
  /** Hangs up on all clients and removes the socket. */
  close(): Promise<void>
}

/** The longest path that fits a sockaddr_un with its end mark (unix(7)). */
const PATH_LIMIT = 107

/** How long a process may take to die, or to answer, ms. */
const DYING_MS = 2000

/** Opens the control socket with mode 0600; a dead process's is replaced. Throws DetourError when a live one is there. */
export async function serveControl(source: Source, options: ControlOptions = {}): Promise<ControlServer> {
  const path = options.path ?? socketPath(source.info().face)
  if (Buffer.byteLength(path) > PATH_LIMIT) {
    throw new DetourError(
      'bad-config',
      `control socket ${path}: longer than ${PATH_LIMIT} bytes; choose a shorter path`,
    )
  }
  if (options.path === undefined || dirname(path) === socketDirectory()) prepareDirectory(dirname(path))
  await removeStale(path)

  const patienceMs = options.patienceMs ?? 5000
  const open = new Set<Socket>()
  const server = createServer({ allowHalfOpen: true }, socket => {
    open.add(socket)
    socket.on('close', () => open.delete(socket))
    socket.on('error', () => {})
    const refusal = refuse(socket, open.size > (options.clients ?? 32))
    if (refusal !== undefined) hangUp(socket, patienceMs, refusal)
    else void converse(socket, request => answer(request, source, options.operations), patienceMs)
  })
  await listen(server, path)

  return {
    path,
    close: () =>
      new Promise(resolve => {
        server.close(() => resolve())
        for (const socket of open) socket.destroy()
      }),
  }
}

/** Removes what a dead process left; refuses to touch a live socket or something else. NB: a process that is killed hangs up before it is dead. */
async function removeStale(path: string): Promise<void> {
  for (const until = performance.now() + DYING_MS; existsSync(path); await sleep(DYING_MS / 40)) {
    if (!lstatSync(path).isSocket()) {
      throw new DetourError('bad-config', `control socket ${path}: something that is not a socket is there; remove it`)
    }
    const owner = await ownerOf(path)
    if (owner === undefined) return rmSync(path, { force: true })
    if (owner.answers || performance.now() >= until) {
      throw new DetourError(
        'system',
        `control socket ${path} is in use by ${owner.text}; stop it, or name another (--control, node.control)`,
      )
    }
  }
}

/** Who listens at a path; undefined when nobody does. */
async function ownerOf(path: string): Promise<{ answers: boolean; text: string } | undefined> {
  try {
    const client = await connectControl(path, DYING_MS)
    try {
      const { pid, face } = await client.ask('info', {})
      return { answers: true, text: `detour ${face}, process ${pid}` }
    } finally {
      client.close()
    }
  } catch (error) {
    if (error instanceof DetourError && error.code === 'not-found') return undefined
    return { answers: false, text: `a process that does not answer (${(error as Error).message})` }
  }
}

/** Listens; the umask makes the socket private from its first moment (bind happens inside `listen`). */
function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', error => {
      // NB: Node calls a missing directory EACCES.
      const why = existsSync(dirname(path)) ? error.message : `${dirname(path)} does not exist`
      reject(new DetourError('system', `control socket ${path}: ${why}`, { cause: error }))
    })
    const umask = process.umask(0o177)
    try {
      server.listen(path, () => {
        chmodSync(path, 0o600)
        resolve()
      })
    } finally {
      process.umask(umask)
    }
  })
}

function refuse(socket: Socket, full: boolean): Failure | undefined {
  if (full) return { code: 'busy', message: 'too many clients; try again later' }
  const uid = peerCredentials(socket)?.uid
  if (uid === undefined || uid === 0 || uid === process.geteuid?.()) return undefined
  return { code: 'permission', message: `user ${uid} may not ask; only root and the user that started Detour` }
}

/**
 * Says why, and ends the connection, by force if the client does not. NB: closing at once would fail the client's next
 * write with EPIPE before it has read the reason.
 */
function hangUp(socket: Socket, patienceMs: number, failure: Failure): void {
  if (!socket.writable) return
  socket.resume()
  socket.end(encodeReply({ id: 0, failure }))
  const timer = setTimeout(() => socket.destroy(), patienceMs)
  socket.once('close', () => clearTimeout(timer))
}

/** Serves one client to its end. One request at a time, and none is read while an answer waits to be taken. */
async function converse(
  socket: Socket,
  answer: (request: Request) => Promise<Uint8Array>,
  patienceMs: number,
): Promise<void> {
  const reader = new FrameReader()
  let version = 0
  let deadline: NodeJS.Timeout | undefined
  const complain = (message: string) => hangUp(socket, patienceMs, { code: 'protocol', message })
  const expect = (what: string) => {
    deadline ??= setTimeout(() => complain(`${what} did not come within ${patienceMs} ms`), patienceMs)
  }
  const arrived = () => {
    clearTimeout(deadline)
    deadline = undefined
  }
  expect('hello')
  try {
    for await (const chunk of socket.iterator({ destroyOnReturn: false })) {
      reader.push(chunk)
      for (let content = reader.next(); content !== undefined; content = reader.next()) {
        if (!socket.writable) return
        arrived()
        const request = decodeRequest(content)
        if (version === 0) {
          const failure = greet(request)
          if (failure !== undefined) return hangUp(socket, patienceMs, failure)
          version = Math.min(VERSIONS.highest, request.hello!.highest)
          await send(socket, encodeReply({ id: request.id, hello: { version } }), patienceMs)
        } else {
          await send(socket, await answer(request), patienceMs)
        }
      }
      if (reader.pending > 0) expect('the rest of a frame')
    }
    socket.end()
  } catch (error) {
    if (socket.writable) complain((error as Error).message)
  } finally {
    arrived()
  }
}

function greet({ hello }: Request): Failure | undefined {
  if (hello === undefined) return { code: 'protocol', message: 'the first request must be hello' }
  if (hello.lowest <= VERSIONS.highest && hello.highest >= VERSIONS.lowest) return undefined
  const ours = `${VERSIONS.lowest} to ${VERSIONS.highest}`
  return { code: 'version', message: `speaks versions ${ours}, the client ${hello.lowest} to ${hello.highest}` }
}

/** Writes a frame, and waits until the client takes it when much is waiting; a client that does not is cut off. */
function send(socket: Socket, bytes: Uint8Array, patienceMs: number): Promise<void> {
  if (!socket.writable || socket.write(bytes)) return Promise.resolve()
  return new Promise(resolve => {
    const timer = setTimeout(() => socket.destroy(), patienceMs)
    const done = () => {
      clearTimeout(timer)
      socket.off('drain', done)
      socket.off('close', done)
      resolve()
    }
    socket.on('drain', done)
    socket.on('close', done)
  })
}

async function answer(request: Request, source: Source, operations?: Operations): Promise<Uint8Array> {
  const id = request.id
  try {
    const done = operations === undefined ? undefined : await operate(request, operations)
    const bytes = encodeReply({ id, ...(done ?? (await read(request, source))) })
    if (bytes.length <= 4 + FRAME_LIMIT) return bytes
    const message = `the answer has ${bytes.length} bytes, at most ${FRAME_LIMIT} are sent; ask for fewer rows`
    return encodeReply({ id, failure: { code: 'too-large', message } })
  } catch (error) {
    const { message } = error as Error
    if (request.body === 'addFault' || request.body === 'clearFaults') {
      if (error instanceof DetourError) return encodeReply({ id, failure: { code: 'bad-request', message } })
    }
    if (error instanceof OperationFailure) return encodeReply({ id, failure: { code: error.code, message } })
    return encodeReply({ id, failure: { code: 'internal', message: `${request.body}: ${message}` } })
  }
}

/** Has an operation done; undefined when the request is none. */
async function operate(request: Request, operations: Operations): Promise<Partial<Reply> | undefined> {
  switch (request.body) {
    case 'attach':
      return { attach: await operations.attach(request.attach!) }
    case 'detach':
      return { detach: await operations.detach(request.detach!) }
    case 'check':
      return { check: await operations.check(request.check!) }
    case 'ready':
      return { ready: await operations.ready() }
    case 'collect':
      return { collect: await operations.collect(request.collect!) }
    case 'reload':
      return operations.reload && { reload: await operations.reload() }
    default:
      return undefined
  }
}

async function read(request: Request, source: Source): Promise<Partial<Reply>> {
  switch (request.body) {
    case 'info': {
      const identity = { pid: process.pid, uptimeMs: process.uptime() * 1000, version: packageVersion() }
      return { info: { ...source.info(), ...identity } }
    }
    case 'stats':
      return { stats: { rows: stageRows(source.counters()) } }
    case 'drops':
      return { drops: { rows: dropRows(source.counters()) } }
    case 'flows':
      return { flows: await source.flows(clamp(request.flows!)) }
    case 'attachments':
      return { attachments: { rows: await source.attachments() } }
    case 'underlay':
      return { underlay: { rows: await source.underlay() } }
    case 'alarms':
      return { alarms: { rows: source.alarms?.() ?? [] } }
    case 'endpoints':
      return { endpoints: { rows: source.endpoints?.() ?? [] } }
    case 'trace':
      if (source.trace !== undefined) return { trace: await source.trace(request.trace!) }
      return { failure: { code: 'unknown-request', message: `a ${source.info().face} has no stages to trace` } }
    case 'faults':
    case 'addFault':
    case 'clearFaults':
      if (source.faults !== undefined) return control(request, source.faults)
      return { failure: { code: 'unknown-request', message: `a ${source.info().face} has no faults on demand` } }
    default:
      return { failure: { code: 'unknown-request', message: 'this version does not know the request' } }
  }
}

async function control(request: Request, faults: FaultControl): Promise<Partial<Reply>> {
  if (request.body === 'addFault') return { addFault: { rows: await faults.add(request.addFault!.spec) } }
  if (request.body === 'clearFaults') return { clearFaults: { rows: await faults.clear(request.clearFaults!.id) } }
  return { faults: { rows: faults.rows() } }
}

function clamp(query: FlowQuery): FlowQuery {
  const order = FLOW_ORDERS.includes(query.order) ? query.order : 'bytes'
  return { ...query, order, limit: Math.min(Math.max(1, query.limit), FLOW_LIMIT) }
}

/** The rows of `stats`, in the order of the workers and their stages. */
export function stageRows(workers: WorkerCounters[]): StageRow[] {
  return workers.flatMap(({ worker, stages }) =>
    stages.map(stage => ({
      worker,
      stage: stage.name,
      inPackets: stage.row[COLUMN.IN_PACKETS],
      inBytes: stage.row[COLUMN.IN_BYTES],
      outPackets: stage.row[COLUMN.OUT_PACKETS],
      outBytes: stage.row[COLUMN.OUT_BYTES],
      created: stage.row[COLUMN.CREATED],
      copiedBytes: stage.row[COLUMN.COPIED_BYTES],
      calls: stage.row[COLUMN.CALLS],
      errors: stage.row[COLUMN.ERRORS],
      drops: stage.drops(),
      passed: stage.row[COLUMN.PASSED],
    })),
  )
}

/** The rows of `drops`: every (stage, reason) that has stopped a packet. */
export function dropRows(workers: WorkerCounters[]): DropRow[] {
  const rows: DropRow[] = []
  for (const { worker, stages } of workers) {
    for (const stage of stages) {
      for (let reason = 1; reason < DROP_COUNT; reason++) {
        const packets = stage.drops(reason)
        if (packets > 0)
          rows.push({ worker, stage: stage.name, reason: dropName(reason), text: dropText(reason), packets })
      }
    }
  }
  return rows.sort((a, b) => b.packets - a.packets)
}

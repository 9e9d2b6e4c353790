// The control protocol's messages and frames (control.proto), for both ends. No native code, no socket.

import type protobuf from 'protobufjs'
import type {
  AttachReply,
  AttachRequest,
  CheckReply,
  CheckRequest,
  CollectRequest,
  DetachRequest,
  ReadyReply,
  ReloadReply,
} from './operations.ts'
import { schema } from './schema.ts'
import type {
  AlarmRow,
  AttachmentRow,
  EndpointRow,
  FaultRow,
  FlowPage,
  FlowQuery,
  TracePage,
  TraceRequest,
  UnderlayRow,
} from './source.ts'

/** The protocol versions that this build speaks. */
export const VERSIONS = { lowest: 1, highest: 1 } as const

/** A longer frame ends the connection. */
export const FRAME_LIMIT = 1 << 20

/** A face's introduction. */
export interface Info {
  face: string
  pid: number
  uptimeMs: number
  version: string
  profile: string
}

/** One stage of one worker; the columns are those of memory/counters. */
export interface StageRow {
  worker: string
  stage: string
  inPackets: number
  inBytes: number
  outPackets: number
  outBytes: number
  created: number
  copiedBytes: number
  calls: number
  errors: number
  drops: number
  /** Of those that went on: past the endpoint. */
  passed?: number
}

/** What one stage of one worker dropped for one reason; `text` is the sentence that explains it. */
export interface DropRow {
  worker: string
  stage: string
  reason: string
  text: string
  packets: number
}

export interface Rows<Row> {
  rows: Row[]
}

/** Request bodies by name. */
export interface RequestBodies {
  hello: { lowest: number; highest: number }
  info: object
  stats: object
  drops: object
  flows: FlowQuery
  attachments: object
  underlay: object
  alarms: object
  attach: AttachRequest
  detach: DetachRequest
  check: CheckRequest
  ready: object
  collect: CollectRequest
  endpoints: object
  trace: TraceRequest
  reload: object
  faults: object
  addFault: { spec: string }
  /** All of them without an id. */
  clearFaults: { id?: number }
}

/** Reply bodies by the name of what was asked. */
export interface ReplyBodies {
  hello: { version: number }
  info: Info
  stats: Rows<StageRow>
  drops: Rows<DropRow>
  flows: FlowPage
  attachments: Rows<AttachmentRow>
  underlay: Rows<UnderlayRow>
  alarms: Rows<AlarmRow>
  attach: AttachReply
  detach: { found: boolean }
  check: CheckReply
  ready: ReadyReply
  collect: { removed: string[] }
  endpoints: Rows<EndpointRow>
  trace: TracePage
  reload: ReloadReply
  faults: Rows<FaultRow>
  /** What was added. */
  addFault: Rows<FaultRow>
  /** What was taken away. */
  clearFaults: Rows<FaultRow>
}

export type Topic = keyof RequestBodies

/** Why a request, or with id 0 the connection, was refused. */
export interface Failure {
  code:
    | 'protocol'
    | 'version'
    | 'permission'
    | 'busy'
    | 'too-large'
    | 'unknown-request'
    | 'bad-request'
    | 'unavailable'
    | 'internal'
  message: string
}

/** A decoded message; `body` names the field that is set, and is undefined for one that this version does not know. */
export type Request = { id: number; body?: Topic } & Partial<RequestBodies>
export type Reply = { id: number; body?: Topic | 'failure'; failure?: Failure } & Partial<ReplyBodies>

const requestType = schema.lookupType('detour.control.Request')
const replyType = schema.lookupType('detour.control.Reply')
const PLAIN = { longs: Number, defaults: true, arrays: true, oneofs: true }

/** A request as a frame. */
export function encodeRequest<T extends Topic>(id: number, topic: T, body: RequestBodies[T]): Uint8Array {
  return frame(requestType, { id, [topic]: body })
}

/** A reply as a frame; it may be longer than FRAME_LIMIT, which the caller checks. */
export function encodeReply(reply: Omit<Reply, 'body'>): Uint8Array {
  return frame(replyType, reply)
}

/** A frame's content as a request. Throws on garbage. */
export function decodeRequest(bytes: Uint8Array): Request {
  return requestType.toObject(requestType.decode(bytes), PLAIN) as Request
}

/** A frame's content as a reply. Throws on garbage. */
export function decodeReply(bytes: Uint8Array): Reply {
  return replyType.toObject(replyType.decode(bytes), PLAIN) as Reply
}

function frame(type: protobuf.Type, message: object): Uint8Array {
  const content = type.encode(type.fromObject(message)).finish()
  const out = Buffer.alloc(4 + content.length)
  out.writeUInt32LE(content.length)
  out.set(content, 4)
  return out
}

/** Cuts a byte stream into frames. NB: it copies, since a chunk of one byte from a socket keeps 64 KiB alive. */
export class FrameReader {
  private buffer = Buffer.alloc(512)
  private length = 0

  /** How many bytes wait for the rest of their frame. */
  get pending(): number {
    return this.length
  }

  push(chunk: Uint8Array): void {
    const need = this.length + chunk.length
    if (need > this.buffer.length) {
      const larger = Buffer.alloc(Math.max(need, 2 * this.buffer.length))
      this.buffer.copy(larger, 0, 0, this.length)
      this.buffer = larger
    }
    this.buffer.set(chunk, this.length)
    this.length = need
  }

  /** The content of the next whole frame, or undefined until there is one. Throws RangeError on one over FRAME_LIMIT. */
  next(): Uint8Array | undefined {
    if (this.length < 4) return undefined
    const size = this.buffer.readUInt32LE(0)
    if (size > FRAME_LIMIT) throw new RangeError(`a frame of ${size} bytes; at most ${FRAME_LIMIT} are allowed`)
    if (this.length < 4 + size) return undefined
    const content = Uint8Array.prototype.slice.call(this.buffer, 4, 4 + size)
    this.buffer.copyWithin(0, 4 + size, this.length)
    this.length -= 4 + size
    return content
  }
}

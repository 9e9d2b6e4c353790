// The first message of a TLS connection: what the client says of where it wants to go (RFC 8446 section 4.1.2, RFC 6066
// section 3, RFC 7301).

import { Gathering } from './gathering.ts'

/** What a ClientHello tells. */
export interface ClientHello {
  /** In lower case; undefined without the extension. */
  sni: string | undefined
  /** As it was sent, a character a byte. */
  serverName: string | undefined
  alpn: string[]
}

const HANDSHAKE = 22
const CLIENT_HELLO = 1
const SERVER_NAME = 0
const ALPN = 16
/** Bytes in front of a record's content, and of a handshake message's. */
const RECORD = 5
const MESSAGE = 4
/** Largest record in the clear (RFC 8446 section 5.1). */
const RECORD_LIMIT = 1 << 14
/** Largest hello that is waited for. */
export const HELLO_LIMIT = 1 << 14

/** Collects the ClientHello at the start of a stream, over as many records and segments as it takes. */
export class HelloReader {
  state: 'waiting' | 'done' | 'broken' = 'waiting'
  hello: ClientHello | undefined
  private readonly record = new Gathering()
  private readonly message = new Gathering()
  /** Content of the record at hand that is still to come. */
  private left = 0

  /** Takes the next bytes of the stream. */
  feed(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length && this.state === 'waiting'; ) {
      const wanted = this.left > 0 ? this.left : RECORD - this.record.length
      const piece = bytes.subarray(at, at + wanted)
      at += piece.length
      if (this.left > 0) this.content(piece)
      else this.header(piece)
    }
  }

  private header(piece: Uint8Array): void {
    const { record } = this
    record.push(piece)
    const b = record.view
    if (b[0] !== HANDSHAKE || (b.length > 1 && b[1] !== 3)) this.state = 'broken'
    if (b.length < RECORD) return
    this.left = b.readUInt16BE(3)
    record.shift(RECORD)
    if (this.left === 0 || this.left > RECORD_LIMIT) this.state = 'broken'
  }

  private content(piece: Uint8Array): void {
    const { message } = this
    this.left -= piece.length
    message.push(piece)
    const b = message.view
    if (b[0] !== CLIENT_HELLO) this.state = 'broken'
    if (b.length < MESSAGE) return
    const end = MESSAGE + b.readUIntBE(1, 3)
    if (end > HELLO_LIMIT) this.state = 'broken'
    if (this.state !== 'waiting' || b.length < end) return
    this.hello = parseClientHello(b.subarray(MESSAGE, end))
    this.state = this.hello === undefined ? 'broken' : 'done'
  }
}

/** Reads a ClientHello's body; undefined when its lengths do not add up. */
export function parseClientHello(b: Buffer): ClientHello | undefined {
  // legacy_version and random, then three lists: session id, cipher suites, compression methods.
  let at = 34
  for (const size of [1, 2, 1]) {
    if (at + size > b.length) return undefined
    at += size + b.readUIntBE(at, size)
  }
  const hello: ClientHello = { sni: undefined, serverName: undefined, alpn: [] }
  if (at === b.length) return hello
  if (at + 2 > b.length || at + 2 + b.readUInt16BE(at) !== b.length) return undefined
  for (at += 2; at < b.length; ) {
    if (at + 4 > b.length) return undefined
    const type = b.readUInt16BE(at)
    const end = at + 4 + b.readUInt16BE(at + 2)
    if (end > b.length) return undefined
    const body = b.subarray(at + 4, end)
    if (type === SERVER_NAME && hello.sni === undefined) {
      const name = serverName(body)
      if (name === undefined) return undefined
      hello.serverName = name
      hello.sni = name.toLowerCase()
    }
    if (type === ALPN) {
      const names = protocols(body)
      if (names === undefined) return undefined
      hello.alpn = names
    }
    at = end
  }
  return hello
}

function serverName(b: Buffer): string | undefined {
  if (b.length < 5 || 2 + b.readUInt16BE(0) !== b.length || b[2] !== 0) return undefined
  const end = 5 + b.readUInt16BE(3)
  return end > b.length ? undefined : b.toString('latin1', 5, end)
}

function protocols(b: Buffer): string[] | undefined {
  if (b.length < 2 || 2 + b.readUInt16BE(0) !== b.length) return undefined
  const names: string[] = []
  for (let at = 2; at < b.length; at += 1 + b[at]) {
    if (b[at] === 0 || at + 1 + b[at] > b.length) return undefined
    names.push(b.toString('latin1', at + 1, at + 1 + b[at]))
  }
  return names
}

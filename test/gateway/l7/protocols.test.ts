// What streams say: HTTP, TLS and DNS as their own programs write them, judged by tshark, and cut anywhere.

import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { METHODS, request } from 'node:http'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect } from 'node:tls'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { DnsReader, parseQuery } from '../../../src/gateway/l7/dns.ts'
import { HEAD_LIMIT, HttpReader, isAmbiguous, normalPath, type RequestHead } from '../../../src/gateway/l7/http.ts'
import { HelloReader } from '../../../src/gateway/l7/tls.ts'

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'detour-l7-'))
})
afterAll(() => rmSync(folder, { recursive: true }))

/** The first bytes that a client sends to a server that never answers. */
async function firstBytes(
  dial: (port: number) => { destroy(): void; on(event: 'error', listener: () => void): unknown },
) {
  const server = createServer()
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const got = new Promise<Buffer>(resolve => server.once('connection', socket => socket.once('data', resolve)))
  const client = dial((server.address() as { port: number }).port)
  client.on('error', () => {})
  const bytes = await got
  client.destroy()
  await new Promise(resolve => server.close(resolve))
  return bytes
}

/** Fields that tshark finds in a payload of TCP or UDP. */
function tshark(payload: Uint8Array, ports: string, fields: string[]): string[][] {
  const hex = join(folder, 'payload.txt')
  const lines: string[] = []
  for (let at = 0; at < payload.length; at += 16) {
    const row = [...payload.subarray(at, at + 16)].map(byte => byte.toString(16).padStart(2, '0'))
    lines.push(`${at.toString(16).padStart(6, '0')} ${row.join(' ')}`)
  }
  writeFileSync(hex, `${lines.join('\n')}\n`)
  const file = join(folder, 'payload.pcap')
  execFileSync('text2pcap', [...ports.split(' '), hex, file], { stdio: 'ignore' })
  const out = execFileSync('tshark', ['-r', file, '-T', 'fields', ...fields.flatMap(field => ['-e', field])], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  return out
    .trimEnd()
    .split('\n')
    .map(line => line.split('\t'))
}

const cuts = (size: number) =>
  fc.array(fc.nat(size), { maxLength: 10 }).map(places => [0, ...new Set(places), size].sort((a, b) => a - b))
const pieces = (bytes: Uint8Array, places: number[]) => places.slice(1).map((to, i) => bytes.subarray(places[i], to))

function heads(bytes: Uint8Array, places = [0, bytes.length]) {
  const all: RequestHead[] = []
  const reader = new HttpReader(head => all.push(head))
  for (const piece of pieces(bytes, places)) reader.feed(piece)
  return { all, reader }
}

describe('HTTP', () => {
  it('of Node’s own client is what tshark sees', async () => {
    const bytes = await firstBytes(port => {
      const options = { host: '127.0.0.1', port, path: '/a%20b?q=%2e', headers: { Host: 'Web.Example:81', 'X-A': 'b' } }
      const client = request({ ...options, method: 'DELETE' })
      client.end()
      return client
    })
    const fields = ['http.request.method', 'http.request.uri', 'http.host']
    expect(tshark(bytes, '-T 1234,80', fields)).toEqual([['DELETE', '/a%20b?q=%2e', 'Web.Example:81']])
    const { all } = heads(bytes)
    expect(all).toHaveLength(1)
    expect(all[0]).toMatchObject({
      method: 'DELETE',
      target: '/a%20b?q=%2e',
      host: 'web.example',
      path: '/a%20b?q=%2e',
    })
    expect(all[0].headers).toContainEqual(['X-A', 'b'])
  })

  const MANY = `GET /many HTTP/1.1\r\nHost: h\r\n${Array.from({ length: 80 }, (_, i) => `A${i}: ${i}\r\n`).join('')}\r\n`
  const TALK = Buffer.from(
    [
      'POST /one HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nGET /',
      'PUT /two HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nGET\r\n1\r\n \r\n0\r\nTrailer: x\r\n\r\n',
      MANY,
      'GET http://Other.Example:8080/three?x HTTP/1.1\r\nHost: h\r\n\r\n',
    ].join(''),
  )

  it('is the same, cut anywhere, bodies and chunks and many headers included', () => {
    const { all } = heads(TALK)
    expect(all.map(({ method, path, host }) => `${method} ${host} ${path}`)).toEqual([
      'POST h /one',
      'PUT h /two',
      'GET h /many',
      'GET other.example /three?x',
    ])
    expect(all[2].headers).toHaveLength(81)
    fc.assert(
      fc.property(cuts(TALK.length), places => {
        expect(heads(TALK, places).all).toEqual(all)
      }),
    )
    for (let at = 1; at < TALK.length; at++) expect(heads(TALK, [0, at, TALK.length]).all).toEqual(all)
  })

  it.each([
    ['a space in front of a colon', 'GET / HTTP/1.1\r\nHost : h\r\n\r\n'],
    ['a folded line', 'GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n'.replace('\r\n c', '\n c')],
    [
      'both a length and chunks',
      'POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    ],
    ['two lengths', 'POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx'],
    ['a null byte', 'GET /\0 HTTP/1.1\r\nHost: h\r\n\r\n'],
    ['a head without end', `GET /${'a'.repeat(2 * HEAD_LIMIT)}`],
    ['no HTTP', 'SSH-2.0-OpenSSH_9.6\r\n'],
    ['RTSP', 'DESCRIBE rtsp://h/ RTSP/1.0\r\nCSeq: 1\r\n\r\n'],
    ['no version', 'GET /\r\n'],
    ['two hosts', 'GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n'],
    ['chunks in HTTP/1.0', 'POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n'],
    ['dots behind an encoded slash', 'GET /a%2f../b HTTP/1.1\r\nHost: h\r\n\r\n'],
  ])('is broken by %s', (_, text) => {
    const { reader } = heads(Buffer.from(text))
    expect(reader.state).toBe('broken')
    expect(reader.flaw).not.toBe('')
  })

  it('finds a request without version behind any body, cut anywhere', () => {
    const talk = Buffer.from(`${TALK}GET /zero\r\n`)
    for (let at = 0; at < talk.length; at++) {
      const { all, reader } = heads(talk, [0, at, talk.length])
      expect(all).toHaveLength(4)
      expect(reader.flaw).toBe('a request line without HTTP version')
    }
  })

  it('knows all methods of Node', () => {
    for (const method of METHODS.filter(one => one !== 'CONNECT' && one !== 'SOURCE'))
      expect(heads(Buffer.from(`${method} / HTTP/1.1\r\nHost: h\r\n\r\n`)).all[0].method).toBe(method)
  })

  it.each(['/a/b%20c/d%2Fe;v=1/./f//g?x=../%00', '/', '*', 'http://h/a%C3%A4/./b/../c', '/..a/b..'])(
    '%s means the same everywhere',
    target => {
      expect(isAmbiguous(target)).toBe(false)
    },
  )

  it.each([
    '/a%2f..%2fb',
    '/a%5C..%5Cb',
    '/a\\..\\b',
    '/a/%252e%252e/b',
    '/a/..;x/b',
    '/a%00/b',
    '/a/%c0%ae%c0%ae/b',
    '/a/%u002e%u002e/b',
    '/a//../b',
    'http://h/a%2f../b',
    `/%${'25'.repeat(9)}41`,
  ])('%s does not', target => {
    expect(isAmbiguous(target)).toBe(true)
  })

  it('tells HTTP/2 and upgrades', () => {
    expect(heads(Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')).reader.state).toBe('http2')
    const upgrade = 'GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05'
    const { all, reader } = heads(Buffer.from(upgrade, 'latin1'))
    expect(all).toHaveLength(1)
    expect(reader.state).toBe('upgraded')
  })

  it.each([
    ['/public/../admin', '/admin'],
    ['/public/%2e%2E/admin', '/admin'],
    ['/./a//b/./c/', '/a/b/c/'],
    ['/../..', '/'],
    ['/%61%64min%2fx%zz', '/admin%2Fx%zz'],
    ['/a/..?q=/../x', '/?q=/../x'],
    ['*', '*'],
  ])('the path %s is %s', (target, path) => {
    expect(normalPath(target)).toBe(path)
  })
})

describe('TLS', () => {
  const hello = (servername: string, ALPNProtocols: string[]) =>
    firstBytes(port => connect({ host: '127.0.0.1', port, servername, ALPNProtocols, rejectUnauthorized: false }))

  it('of Node’s own client is what tshark sees', async () => {
    const bytes = await hello('Web.Example.com', ['h2', 'http/1.1'])
    const fields = ['tls.handshake.extensions_server_name', 'tls.handshake.extensions_alpn_str']
    expect(tshark(bytes, '-T 1234,443', fields)).toEqual([['Web.Example.com', 'h2,http/1.1']])
    const reader = new HelloReader()
    reader.feed(bytes)
    expect(reader).toMatchObject({ state: 'done', hello: { sni: 'web.example.com', alpn: ['h2', 'http/1.1'] } })
  })

  it('is the same, cut anywhere and in any number of records', async () => {
    const bytes = await hello('a.example', [])
    const content = bytes.subarray(5)
    fc.assert(
      fc.property(cuts(content.length), cuts(content.length), (records, segments) => {
        const framed = Buffer.concat(
          pieces(content, [...new Set(records)]).map(piece =>
            Buffer.concat([Buffer.from([22, 3, 1, piece.length >> 8, piece.length & 255]), piece]),
          ),
        )
        const reader = new HelloReader()
        for (const piece of pieces(framed, [...segments.slice(0, -1), framed.length])) reader.feed(piece)
        expect(reader.hello).toEqual({ sni: 'a.example', serverName: 'a.example', alpn: [] })
      }),
    )
  })

  it('is never more than what it is: garbage and lies about lengths are broken or wait, within bounds', async () => {
    const bytes = await hello('a.example', ['h2'])
    fc.assert(
      fc.property(fc.nat(bytes.length - 1), fc.nat(255), (at, value) => {
        const other = Buffer.from(bytes)
        other[at] = value
        const reader = new HelloReader()
        reader.feed(other)
        expect(['waiting', 'done', 'broken']).toContain(reader.state)
      }),
    )
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), garbage => {
        const reader = new HelloReader()
        reader.feed(garbage)
        expect(reader.state).not.toBe('done')
      }),
    )
  })
})

describe('DNS', () => {
  const query = (name: string, type: number) => {
    const labels = name.split('.').flatMap(label => [label.length, ...Buffer.from(label)])
    return Buffer.from([0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, ...labels, 0, type >> 8, type & 255, 0, 1])
  }

  it('is what tshark sees', () => {
    const bytes = query('WWW.Example.com', 28)
    expect(tshark(bytes, '-u 1234,53', ['dns.qry.name', 'dns.qry.type'])).toEqual([['WWW.Example.com', '28']])
    expect(parseQuery(bytes, 0, bytes.length)).toEqual([{ name: 'www.example.com', raw: 'WWW.Example.com', type: 28 }])
  })

  it('over TCP is the same, cut anywhere', () => {
    const many = ['a.example', 'b.example', 'c.d.example'].map(name => query(name, 1))
    const framed = Buffer.concat(many.flatMap(one => [Buffer.from([one.length >> 8, one.length & 255]), one]))
    fc.assert(
      fc.property(cuts(framed.length), places => {
        const names: string[] = []
        const reader = new DnsReader(({ name }) => names.push(name))
        for (const piece of pieces(framed, places)) reader.feed(piece)
        expect(names).toEqual(['a.example', 'b.example', 'c.d.example'])
      }),
    )
  })

  it('of garbage is nothing', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 100 }), garbage => {
        parseQuery(garbage, 0, garbage.length)
        new DnsReader(() => {}).feed(garbage)
      }),
    )
    const bytes = query('a.example', 1)
    for (let end = 0; end < bytes.length; end++) expect(parseQuery(bytes, 0, end)).toBeUndefined()
    // An answer asks nothing.
    bytes[2] |= 0x80
    expect(parseQuery(bytes, 0, bytes.length)).toBeUndefined()
  })
})

// The control protocol's frames, against bytes that Google's protoc 3.21 made of the same control.proto
// (protoc --encode=detour.control.Request -I src/control control.proto).

import { describe, expect, test } from 'vitest'
import {
  decodeReply,
  decodeRequest,
  encodeReply,
  encodeRequest,
  FRAME_LIMIT,
  FrameReader,
} from '../../src/control/protocol.ts'

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')
const bytes = (text: string) => Buffer.from(text, 'hex')

const FLOWS = '08073214081412077061636b65747320bb033a0464726f70'
const STATS = '0807222e0a2c0a09666f72776172642d301205656e63617018ffffffffffffff0f2040280330ac0238034005480650015804'
const ATTACHMENTS =
  '08ac023a550a530a03776562120664742d7765621a0465746830221130323a30303a30303a30303a30303a30312a0831302e31' +
  '2e302e322a07666430303a3a3230dc0b3a046f70656e400048c80152037463785a0375736f6008'
const ATTACH =
  '080982017f0a066330666665651204657468301a0c2f72756e2f6e65746e732f7822036e65742a0473686f7032057765622d30421a0a126465746f75722e646576' +
  '2f696e73706563741204747275654a0b31302e312e302e352f31364a0a666430303a3a352f363452056e657665725a0b6b7562652d73797374656d6206636c6f736564'
const READY = '08099a010f10011a0b6e6f20656e64706f696e74'

const query = { limit: 20, order: 'packets', port: 443, verdict: 'drop' } as const
const stage = {
  worker: 'forward-0',
  stage: 'encap',
  inPackets: Number.MAX_SAFE_INTEGER,
  inBytes: 64,
  outPackets: 3,
  outBytes: 300,
  created: -2,
  copiedBytes: 5,
  calls: 6,
  errors: 1,
  drops: 4,
}
const attachment = {
  id: 'web',
  namespace: 'dt-web',
  interface: 'eth0',
  mac: '02:00:00:00:00:01',
  addresses: ['10.1.0.2', 'fd00::2'],
  mtu: 1500,
  failMode: 'open' as const,
  heartbeatAgeMs: 0,
  heartbeatLimitMs: 200,
  attachRung: 'tcx',
  offloadRung: 'uso',
  failPassed: 8,
  failDropped: 0,
}

describe('messages are those of protoc', () => {
  test('a request', () => {
    const frame = encodeRequest(7, 'flows', query)
    expect(Buffer.from(frame).readUInt32LE()).toBe(frame.length - 4)
    expect(hex(frame.subarray(4))).toBe(FLOWS)
    expect(decodeRequest(bytes(FLOWS))).toEqual({ id: 7, body: 'flows', flows: query })
  })

  test('a reply with large and negative counters', () => {
    expect(hex(encodeReply({ id: 7, stats: { rows: [stage] } }).subarray(4))).toBe(STATS)
    expect(decodeReply(bytes(STATS))).toEqual({ id: 7, body: 'stats', stats: { rows: [stage] } })
  })

  test('an attachment', () => {
    const attach = {
      containerId: 'c0ffee',
      ifname: 'eth0',
      netns: '/run/netns/x',
      network: 'net',
      podNamespace: 'shop',
      podName: 'web-0',
      podUid: '',
      annotations: { 'detour.dev/inspect': 'true' },
      addresses: ['10.1.0.5/16', 'fd00::5/64'],
      inspect: 'never' as const,
      excludeNamespaces: ['kube-system'],
      failMode: 'closed' as const,
    }
    expect(decodeRequest(bytes(ATTACH))).toEqual({ id: 9, body: 'attach', attach })
    expect(decodeRequest(encodeRequest(9, 'attach', attach).subarray(4)).attach).toEqual(attach)
    const { failMode, ...none } = attach
    expect(decodeRequest(encodeRequest(9, 'attach', none).subarray(4)).attach).toEqual(none)
    const ready = { ready: false, degraded: true, reason: 'no endpoint' }
    expect(hex(encodeReply({ id: 9, ready }).subarray(4))).toBe(READY)
  })

  test('an optional zero is not an absent value', () => {
    const decoded = decodeReply(bytes(ATTACHMENTS))
    expect(decoded).toEqual({ id: 300, body: 'attachments', attachments: { rows: [attachment] } })
    const { heartbeatAgeMs, ...none } = attachment
    const frame = encodeReply({ id: 1, attachments: { rows: [none] } })
    expect(decodeReply(frame.subarray(4)).attachments?.rows[0]).not.toHaveProperty('heartbeatAgeMs')
  })

  test('a request of a later version has no body that is known', () => {
    expect(decodeRequest(bytes('0805f20300')).body).toBeUndefined()
  })
})

describe('the frame reader', () => {
  const first = encodeRequest(1, 'stats', {})
  const second = encodeRequest(2, 'flows', query)
  const stream = Buffer.concat([first, second])

  test('cuts the same frames from chunks of every size', () => {
    for (let size = 1; size <= stream.length; size++) {
      const reader = new FrameReader()
      const ids: number[] = []
      for (let at = 0; at < stream.length; at += size) {
        reader.push(stream.subarray(at, at + size))
        for (let content = reader.next(); content !== undefined; content = reader.next()) {
          ids.push(decodeRequest(content).id)
        }
      }
      expect(ids).toEqual([1, 2])
      expect(reader.pending).toBe(0)
    }
  })

  test('a frame of the limit passes, one byte more is refused before it has come', () => {
    const reader = new FrameReader()
    const length = Buffer.alloc(4)
    length.writeUInt32LE(FRAME_LIMIT)
    reader.push(length)
    reader.push(new Uint8Array(FRAME_LIMIT))
    expect(reader.next()).toHaveLength(FRAME_LIMIT)
    length.writeUInt32LE(FRAME_LIMIT + 1)
    reader.push(length)
    expect(() => reader.next()).toThrow(RangeError)
  })
})

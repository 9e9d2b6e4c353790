// Rule files: what is understood, what is refused and by which line, and that hostile ones take neither long nor much.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { parseRules, readVariables } from '../../../src/gateway/suricata/parse.ts'
import { LIMIT_RULE } from '../../../src/gateway/suricata/rule.ts'
import { addressNumber, has, Sets } from '../../../src/gateway/suricata/sets.ts'

const parse = (text: string, how: 'skip' | 'refuse' = 'refuse', variables = {}) =>
  parseRules([{ file: 'x.rules', text }], variables, how)
const one = (options: string, header = 'tcp any any -> any any') =>
  parse(`alert ${header} (${options} sid:1;)`).signatures[0]
const refusal = (text: string) => {
  try {
    parse(text)
  } catch (error) {
    return (error as Error).message
  }
  return 'nothing is wrong'
}

describe('a rule', () => {
  it('tells who it is, with the severity of its class or its own', () => {
    const told = one('msg:"caf\xc3\xa9 \\"x\\"\\; y"; classtype:trojan-activity; rev:3; gid:2; metadata:a b, a c, d e;')
    expect(told).toMatchObject({
      ...{ action: 'alert', msg: 'café "x"; y', sid: 1, rev: 3, gid: 2 },
      ...{ severity: 1, category: 'A Network Trojan was detected', metadata: { a: ['b', 'c'], d: ['e'] } },
    })
    expect(one('classtype:trojan-activity; priority:4;').severity).toBe(4)
    expect(one('').severity).toBe(3)
    expect(one('classtype:constructor; metadata:constructor x, valueOf;')).toMatchObject({
      ...{ severity: 3, category: 'constructor', metadata: { constructor: ['x'], valueOf: [''] } },
    })
  })

  it('goes on behind a backslash, and the line it begins at is told', () => {
    const text =
      '# comment\r\n\r\nalert tcp any any -> \\\r\n  any any (sid:1;)\r\nalert tcp any any -> any (sid:2;)\r\n'
    expect(refusal(text)).toMatch(/^x\.rules:5: a header has seven words, this has 6/)
    expect(parse(text.split('\r\n').slice(0, 4).join('\r\n')).signatures).toHaveLength(1)
  })

  it('looks for its longest content first, or for the one that is marked', () => {
    expect(one('content:"ab"; content:"abcd"; content:!"abcdef";').fast).toEqual({ buffer: 'payload', part: 1 })
    expect(one('content:"ab"; fast_pattern; content:"abcd";').fast).toEqual({ buffer: 'payload', part: 0 })
    expect(one('content:!"abcdef";').fast).toBeUndefined()
  })

  it('may be out of order and old-fashioned: modifiers behind contents are buffers in front of them', () => {
    const old = one('content:"GET"; http_method; content:"/x"; http_uri; nocase;')
    const fresh = one('http.method; content:"GET"; http.uri; content:"/x"; nocase;')
    expect(old.parts).toEqual(fresh.parts)
  })
})

describe('what cannot be taken', () => {
  const wrong: [rule: string, why: RegExp][] = [
    ['alert tcp any any -> any any (content:"x";)', /there is no sid/],
    ['alert tcp any any -> any any (content:"x"; sid:1)', /option 'sid:1' has no ';'/],
    ['alert tcp any any => any any (sid:1;)', /'=>' is not a direction/],
    ['warn tcp any any -> any any (sid:1;)', /action 'warn'; allowed: pass, drop, reject, alert/],
    ['alert tcp any any -> any 99999 (sid:1;)', /'99999' is not a port/],
    ['alert tcp any any -> any 90:80 (sid:1;)', /'90:80' is not a port/],
    ['alert tcp 10.0.0.0/33 any -> any any (sid:1;)', /'10.0.0.0\/33' is not an address/],
    ['alert tcp $NOBODY any -> any any (sid:1;)', /variable \$NOBODY is not set/],
    ['alert tcp [10.0.0.1,!10.0.0.1] any -> any any (sid:1;)', /no address at all/],
    ['alert tcp [[10.0.0.1] any -> any any (sid:1;)', /bracket/],
    ['alert tcp any any -> any any (content:"|0g|"; sid:1;)', /bars enclose/],
    ['alert tcp any any -> any any (content:""; sid:1;)', /1 to 255 bytes/],
    ['alert tcp any any -> any any (nocase; sid:1;)', /nocase stands behind no content/],
    ['alert tcp any any -> any any (content:"abc"; depth:2; sid:1;)', /depth 2 is less/],
    ['alert udp any any -> any any (http.uri; content:"x"; sid:1;)', /contents of http in a rule for udp/],
    ['alert http any any -> any any (tls.sni; content:"x"; sid:1;)', /contents of tls in a rule for http/],
    ['alert tcp any any -> any any (flow:to_server,to_client; sid:1;)', /both directions/],
    ['alert tcp any any -> any any (byte_test:1,>,2,0; sid:1;)', /keyword byte_test is not supported/],
    ['alert tcp any any -> any any (content:"x"; within:var; sid:1;)', /within by a variable/],
    ['alert tcp any any -> any any (pcre:"/a(?=b)/"; sid:1;)', /look-around/],
    ['alert tcp any any -> any any (pcre:"/(a)\\1/"; sid:1;)', /not supported/],
    ['alert tcp any any -> any any (pcre:"/[[:alpha:]]x/"; sid:1;)', /POSIX/],
    ['alert tcp any any -> any any (pcre:"/a$/"; sid:1;)', /'\$' in payload/],
    ['alert tcp any any -> any any (pcre:"/.*/"; sid:1;)', /matches the empty string/],
    ['alert http any any -> any any (http.host; content:"Example"; sid:1;)', /neither capitals nor nocase/],
    ['alert tcp any any -> any any (content:"x"; startswith; offset:1; sid:1;)', /offset twice/],
    ['alert tcp-pkt any any -> any any (content:"x"; flow:only_stream; sid:1;)', /only_stream in a rule for tcp-pkt/],
    ['alert tcp 10.1 any -> any any (sid:1;)', /'10\.1' is not an address/],
    ['alert tcp !0.0.0.0/0 any -> any any (sid:1;)', /no address at all/],
    ['alert smb any any -> any any (sid:1;)', /protocol 'smb'/],
    [`alert tcp any any -> any any (msg:"${'x'.repeat(LIMIT_RULE)}"; sid:1;)`, /longer than/],
  ]
  it.each(wrong)('%s', (rule, why) => {
    const told = refusal(`\n${rule}\n`)
    expect(told).toMatch(/^x\.rules:2: /)
    expect(told).toMatch(why)
  })

  it('is left out, with its line, where that is asked for; what is no rule is refused all the same', () => {
    const text = 'alert tcp any any -> any any (byte_test:1,>,2,0; sid:1;)\nalert tcp any any -> any any (sid:2;)'
    const { signatures, skipped } = parse(text, 'skip')
    expect(signatures.map(({ sid }) => sid)).toEqual([2])
    expect(skipped).toEqual([{ where: 'x.rules:1', why: 'keyword byte_test is not supported' }])
    expect(() => parse(`${text}\nalert tcp (sid:3;)`, 'skip')).toThrow(/x\.rules:3/)
    expect(() => parse(`${text}\n${text.split('\n')[1]}`, 'skip')).toThrow(
      /x\.rules:3: the rule at x\.rules:2 has the same sid 2/,
    )
  })
})

describe('hostile rules', () => {
  it('that explode are refused, one by one and together', () => {
    expect(refusal('alert tcp any any -> any any (pcre:"/a.{900}b.{900}c/s"; sid:1;)')).toMatch(
      /x\.rules:1: pcre .* (states|complex)/,
    )
    const many = Array.from(
      { length: 2000 },
      (_, i) => `alert tcp any any -> any any (pcre:"/a[^\\n]{13}b${i}/"; sid:${i + 1};)`,
    )
    expect(() => parse(many.join('\n'), 'skip')).toThrow(/need more than \d+ states in all/)
  })

  it('that nest without end are refused', () => {
    const deep = `${'['.repeat(5000)}10.0.0.1${']'.repeat(5000)}`
    expect(refusal(`alert tcp ${deep} any -> any any (sid:1;)`)).toMatch(/nested more than/)
    expect(() => parse('alert tcp $A any -> any any (sid:1;)', 'skip', { A: '[$B,10.0.0.1]', B: '$A' })).toThrow(
      /nested more than/,
    )
    const laughs = Object.fromEntries(
      Array.from({ length: 7 }, (_, i) => [
        `V${i}`,
        i === 0
          ? '10.0.0.1'
          : `[${Array(9)
              .fill(`$V${i - 1}`)
              .join()}]`,
      ]),
    )
    expect(() => parse('alert tcp $V6 any -> any any (sid:1;)', 'skip', laughs)).toThrow(/more than \d+ elements/)
  })

  it('of noise are told of, and no more than some', () => {
    const noise = Array.from({ length: 500 }, (_, i) => `\x00\xff(${'\\'.repeat(i)}"|;`).join('\n')
    expect(refusal(noise).split('\n').length).toBeLessThan(25)
  })
})

describe('variables and sets', () => {
  let folder: string
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'detour-vars-'))
  })
  afterAll(() => rmSync(folder, { recursive: true }))

  it('come from a file as suricata.yaml is, too', () => {
    const file = join(folder, 'vars.yaml')
    writeFileSync(
      file,
      '%YAML 1.1\n---\nvars:\n  address-groups:\n    HOME_NET: "[10.1.0.0/16]"\n  port-groups:\n    SSH_PORTS: 2222\nother: 1\n',
    )
    expect(readVariables(file)).toEqual({ HOME_NET: '[10.1.0.0/16]', SSH_PORTS: '2222' })
    writeFileSync(file, 'a: &a [x]\nvars: 3\n')
    expect(() => readVariables(file)).toThrow(/no variables/)
  })

  it('have what they say', () => {
    const sets = new Sets({ HOME: '[10.0.0.0/8,192.168.1.1]', AWAY: '!$HOME', WEB: '[80,8000:8010,!8005]' })
    const v4 = (...bytes: number[]) => addressNumber(bytes)
    expect(has(sets.addresses('$HOME'), v4(10, 255, 255, 255))).toBe(true)
    expect(has(sets.addresses('$HOME'), v4(11, 0, 0, 0))).toBe(false)
    expect(has(sets.addresses('$AWAY'), v4(192, 168, 1, 1))).toBe(false)
    expect(has(sets.addresses('$AWAY'), v4(192, 168, 1, 2))).toBe(true)
    expect(has(sets.addresses('[$HOME,!10.0.0.0/9]'), v4(10, 127, 0, 0))).toBe(false)
    expect(has(sets.addresses('[$HOME,!10.0.0.0/9]'), v4(10, 128, 0, 0))).toBe(true)
    expect(() => sets.addresses('![::/0]')).toThrow(/no address at all/)
    expect(sets.ports('$WEB')).toEqual([
      { low: 80, high: 80 },
      { low: 8000, high: 8004 },
      { low: 8006, high: 8010 },
    ])
    expect(sets.ports('![:1023,2000:]')).toEqual([{ low: 1024, high: 1999 }])
  })
})

// Rule files in the common subset of Suricata's rule language (Suricata 7 user guide, "Rules").
//
// What is not understood is told by file and line. A keyword that is not supported makes its rule one that would match too much,
// so the rule is left out, or the file refused; a rule that Suricata would not take either is always refused.

import { readFileSync } from 'node:fs'
import { parseDocument } from 'yaml'
import { DetourError } from '../../errors.ts'
import { CLASSES, DEFAULT_SEVERITY } from './classification.ts'
import { Budget } from './expressions.ts'
import {
  ACTIONS,
  BUFFERS,
  type BufferName,
  type Content,
  type Direction,
  isRelative,
  type Part,
  PROTOCOLS,
  type Signature,
} from './model.ts'
import { readExpression } from './pcre.ts'
import { contentBytes, malformed, quoted, type RuleText, rulesIn, splitRule } from './rule.ts'
import { DEFAULT_VARIABLES, Sets, type Variables } from './sets.ts'

/** What becomes of a rule that says something unsupported. */
export const UNSUPPORTED = ['skip', 'refuse'] as const

/** A rule that was left out. */
export interface Skipped {
  /** `file:line`. */
  where: string
  why: string
}

export interface RuleFiles {
  signatures: Signature[]
  skipped: Skipped[]
}

/** Rules of all files, and contents and expressions of one rule, at most. */
export const LIMIT_RULES = 200_000
const LIMIT_PARTS = 64
const LIMIT_FILE = 256 << 20
/** Wrong rules that an error tells of. */
const TOLD = 20

/** Reads rule files; `variables` come before Suricata's own. Throws DetourError. */
export function readRuleFiles(
  files: string[],
  variables: Variables,
  unsupported: (typeof UNSUPPORTED)[number],
): RuleFiles {
  const sources = files.map(file => ({ file, text: textOf(file) }))
  return parseRules(sources, variables, unsupported)
}

/** Reads address-groups and port-groups of a file that has `vars:` as suricata.yaml has. Throws DetourError. */
export function readVariables(file: string): Variables {
  const document = parseDocument(textOf(file), { logLevel: 'silent' })
  const problem = document.errors[0]
  if (problem !== undefined) throw new DetourError('bad-file', `${file}: ${problem.message}`)
  const vars = (document.toJS({ maxAliasCount: 100 }) as { vars?: unknown } | null)?.vars
  const found: Variables = {}
  const take = (groups: unknown) => {
    for (const [name, value] of Object.entries(groups ?? {})) {
      if (typeof value === 'object' && value !== null) take(value)
      else found[name] = String(value)
    }
  }
  if (typeof vars !== 'object' || vars === null)
    throw new DetourError(
      'bad-config',
      `${file}: no variables; allowed: vars: { address-groups: { HOME_NET: "[10.0.0.0/8]" } }`,
    )
  take(vars)
  return found
}

/** Like `readRuleFiles`, of text in which each character is a byte. */
export function parseRules(
  sources: { file: string; text: string }[],
  variables: Variables,
  unsupported: (typeof UNSUPPORTED)[number],
): RuleFiles {
  const sets = new Sets({ ...DEFAULT_VARIABLES, ...variables })
  const budget = new Budget()
  const signatures: Signature[] = []
  const skipped: Skipped[] = []
  const wrong: string[] = []
  const places = new Map<string, string>()
  for (const { file, text } of sources)
    for (const { line, rule } of rulesIn(text)) {
      const where = `${file}:${line}`
      if (signatures.length + skipped.length >= LIMIT_RULES)
        throw new DetourError('bad-config', `${where}: more than ${LIMIT_RULES} rules`)
      try {
        const signature = signatureOf(splitRule(rule), sets, budget)
        const id = `${signature.gid}:${signature.sid}`
        const before = places.get(id)
        if (before !== undefined) malformed(`the rule at ${before} has the same sid ${signature.sid}`)
        places.set(id, where)
        signatures.push(signature)
      } catch (error) {
        if (!(error instanceof DetourError)) throw error
        if (error.code === 'unsupported') skipped.push({ where, why: error.message })
        if (error.code !== 'unsupported' || unsupported === 'refuse') wrong.push(`${where}: ${error.message}`)
        if (wrong.length > TOLD) break
      }
    }
  if (wrong.length > 0)
    throw new DetourError(
      'bad-config',
      [...wrong.slice(0, TOLD), ...(wrong.length > TOLD ? ['and more'] : [])].join('\n'),
    )
  return { signatures, skipped }
}

function textOf(file: string): string {
  let bytes: Uint8Array
  try {
    bytes = readFileSync(file)
  } catch (error) {
    throw new DetourError('bad-file', `rules ${file}: cannot be read (${(error as Error).message})`, { cause: error })
  }
  if (bytes.length > LIMIT_FILE) throw new DetourError('bad-file', `rules ${file}: larger than ${LIMIT_FILE >> 20} MiB`)
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('latin1')
}

function signatureOf(text: RuleText, sets: Sets, budget: Budget): Signature {
  const action = ACTIONS.find(one => one === text.action)
  if (action === undefined) {
    if (/^reject(src|dst|both)$/.test(text.action)) unsupported(`action ${text.action}; reject resets both sides`)
    malformed(`action '${text.action.slice(0, 40)}'; allowed: ${ACTIONS.join(', ')}`)
  }
  const protocol = PROTOCOLS.find(one => one === text.protocol)
  if (protocol === undefined)
    unsupported(`protocol '${text.protocol.slice(0, 40)}'; supported: ${PROTOCOLS.join(', ')}`)
  if (text.arrow !== '->' && text.arrow !== '<>')
    malformed(`'${text.arrow.slice(0, 40)}' is not a direction; allowed: -> and <>`)
  const reader = new OptionReader(budget)
  for (const { name, value } of text.options) reader.take(name, value)
  return reader.finish(action, {
    protocol,
    from: sets.addresses(text.from),
    fromPorts: sets.ports(text.fromPorts),
    to: sets.addresses(text.to),
    toPorts: sets.ports(text.toPorts),
    bothWays: text.arrow === '<>',
  })
}

/** Keywords of old that stand behind a content, for the buffers that come in front of it now. */
const MODIFIERS: Record<string, BufferName> = {
  http_method: 'http.method',
  http_uri: 'http.uri',
  http_raw_uri: 'http.uri.raw',
  http_host: 'http.host',
  http_header: 'http.header',
  http_user_agent: 'http.user_agent',
}

/** Other names of buffers. */
const ALIASES: Record<string, BufferName> = { tls_sni: 'tls.sni', dns_query: 'dns.query', pkt_data: 'payload' }

const APPLICATION: Record<string, 'http' | 'tls' | 'dns'> = { http: 'http', tls: 'tls', dns: 'dns' }

/** Where a content may be looked for: lowest and highest numbers. */
const PLACES = {
  offset: [0, 65_535],
  depth: [1, 65_535],
  distance: [-(1 << 20), 1 << 20],
  within: [1, 1 << 20],
} as const

/** The options of one rule, in their order. */
class OptionReader {
  private readonly budget: Budget
  private readonly found: { buffer: BufferName; part: Part }[] = []
  private buffer: BufferName = 'payload'
  private fast: Part | undefined
  private readonly flow: Signature['flow'] = { direction: 'both' }
  private msg = ''
  private sid = 0
  private rev = 0
  private gid = 1
  private severity: number | undefined
  private type: string | undefined
  private readonly metadata: Record<string, string[]> = {}

  constructor(budget: Budget) {
    this.budget = budget
  }

  take(name: string, value: string): void {
    const sticky = Object.hasOwn(ALIASES, name) ? ALIASES[name] : BUFFERS.find(one => one === name && one !== 'payload')
    if (sticky !== undefined) {
      this.buffer = sticky
      return
    }
    if (Object.hasOwn(MODIFIERS, name)) {
      this.content(name)
      this.found[this.found.length - 1].buffer = MODIFIERS[name]
      return
    }
    switch (name) {
      case 'msg':
        this.msg = Buffer.from(quoted(value).text.replaceAll(/\\(.)/g, '$1'), 'latin1').toString()
        return
      case 'sid':
        this.sid = number(value, 1, 0xffff_ffff, name)
        return
      case 'rev':
        this.rev = number(value, 0, 0xffff_ffff, name)
        return
      case 'gid':
        this.gid = number(value, 0, 0xffff_ffff, name)
        return
      case 'priority':
        this.severity = number(value, 0, 0xffff_ffff, name)
        return
      case 'classtype':
        this.type = value
        return
      case 'metadata':
        this.describe(value)
        return
      case 'reference':
      case 'target':
      case 'rawbytes':
        return
      case 'flow':
        this.flowing(value)
        return
      case 'content':
        this.add(newContent(value))
        return
      case 'pcre': {
        const { text, negated } = quoted(value)
        const { expression, buffer } = readExpression(text, negated)
        this.budget.compile(expression.source, expression.flags)
        this.add(expression, buffer)
        return
      }
      case 'nocase': {
        const content = this.content(name)
        if (content.nocase) malformed('nocase twice for one content')
        content.nocase = true
        content.bytes = content.bytes.map(byte => (byte >= 65 && byte <= 90 ? byte | 32 : byte))
        return
      }
      case 'offset':
      case 'depth':
      case 'distance':
      case 'within': {
        const [low, high] = PLACES[name]
        this.place(name, number(value, low, high, name))
        return
      }
      case 'startswith':
        this.place('offset', 0)
        this.place('depth', this.content(name).bytes.length)
        return
      case 'endswith':
        this.content(name).atEnd = true
        return
      case 'fast_pattern':
        this.fast = this.content(name)
        return
      default:
        unsupported(`keyword ${name.slice(0, 40)} is not supported`)
    }
  }

  finish(action: Signature['action'], header: Signature['header']): Signature {
    if (this.sid === 0) malformed('there is no sid')
    const buffers = [...new Set(this.found.map(one => one.buffer))]
    const parts = buffers.map(buffer => ({
      buffer,
      parts: this.found.filter(one => one.buffer === buffer).map(one => one.part),
    }))
    for (const one of parts) checkParts(one.buffer, one.parts)
    const { only } = this.flow
    if (only !== undefined && CONTRARY[header.protocol] === only)
      malformed(`flow:${only === 'packet' ? 'no_stream' : 'only_stream'} in a rule for ${header.protocol}`)
    this.checkProtocol(buffers, header.protocol)
    const { type = '' } = this
    const [category, severity] = Object.hasOwn(CLASSES, type) ? CLASSES[type] : [type, DEFAULT_SEVERITY]
    return {
      action,
      header,
      flow: this.flow,
      parts,
      fast: this.fastest(parts),
      msg: this.msg,
      sid: this.sid,
      rev: this.rev,
      gid: this.gid,
      severity: this.severity ?? severity,
      category,
      metadata: this.metadata,
    }
  }

  private add(part: Part, buffer = this.buffer): void {
    if (this.found.length >= LIMIT_PARTS) unsupported(`more than ${LIMIT_PARTS} contents and expressions`)
    this.found.push({ buffer, part })
  }

  /** The content that a modifier stands behind. */
  private content(modifier: string): Content {
    const part = this.found.at(-1)?.part
    if (part?.kind !== 'content') malformed(`${modifier} stands behind no content`)
    return part
  }

  private place(name: keyof typeof PLACES, value: number): void {
    const content = this.content(name)
    if (content[name] !== undefined) malformed(`${name} twice for one content`)
    content[name] = value
  }

  private flowing(value: string): void {
    const words: Record<string, () => void> = {
      to_server: () => this.direct('to_server'),
      from_client: () => this.direct('to_server'),
      to_client: () => this.direct('to_client'),
      from_server: () => this.direct('to_client'),
      established: () => (this.flow.established = true),
      not_established: () => (this.flow.established = false),
      stateless: () => {},
      only_stream: () => (this.flow.only = 'stream'),
      no_stream: () => (this.flow.only = 'packet'),
    }
    for (const word of value.split(',').map(one => one.trim())) {
      if (!Object.hasOwn(words, word)) unsupported(`flow:${word.slice(0, 40)} is not supported`)
      words[word]()
    }
  }

  private direct(direction: Direction): void {
    if (this.flow.direction !== 'both' && this.flow.direction !== direction) malformed('flow names both directions')
    this.flow.direction = direction
  }

  private describe(value: string): void {
    for (const one of value.split(',')) {
      const [, key, rest = ''] = /^(\S+)\s*(.*)$/s.exec(one.trim()) ?? []
      if (key === undefined || key === '__proto__') continue
      if (Object.hasOwn(this.metadata, key)) this.metadata[key].push(rest)
      else this.metadata[key] = [rest]
    }
  }

  private checkProtocol(buffers: BufferName[], protocol: string): void {
    const applications = new Set(buffers.filter(one => one !== 'payload').map(one => one.split('.')[0]))
    if (applications.size > 1) malformed(`contents of ${[...applications].join(' and ')} in one rule`)
    const [application] = applications
    if (application === undefined) return
    if (buffers.includes('payload')) unsupported(`contents of the payload beside those of ${application}`)
    if (Object.hasOwn(APPLICATION, protocol) && protocol !== application)
      malformed(`contents of ${application} in a rule for ${protocol}`)
    const carries = application === 'dns' ? ['dns', 'tcp', 'udp', 'ip'] : [application, 'tcp', 'ip']
    if (!carries.includes(protocol)) malformed(`contents of ${application} in a rule for ${protocol}`)
    if (this.flow.direction === 'to_client') unsupported(`contents of ${application} in answers`)
    this.flow.direction = 'to_server'
  }

  /** The content that is looked for first: the one that is marked, or the longest. */
  private fastest(all: Signature['parts']): Signature['fast'] {
    let best: Signature['fast']
    let longest = 0
    for (const { buffer, parts } of all)
      for (const [i, part] of parts.entries()) {
        if (part.kind !== 'content' || part.negated) continue
        if (part === this.fast) return { buffer, part: i }
        if (part.bytes.length > longest) {
          longest = part.bytes.length
          best = { buffer, part: i }
        }
      }
    return best
  }
}

function newContent(value: string): Content {
  const { text, negated } = quoted(value)
  return { kind: 'content', bytes: contentBytes(text), nocase: false, negated, atEnd: false }
}

/** What `flow` may not ask for beside a protocol. */
const CONTRARY: Record<string, Signature['flow']['only']> = { 'tcp-stream': 'packet', 'tcp-pkt': 'stream' }

function checkParts(buffer: BufferName, parts: Part[]): void {
  for (const [i, part] of parts.entries()) {
    const before = parts[i - 1]
    if (isRelative(part) && before?.kind === 'pcre') unsupported('what begins where a pcre ended')
    if (part.kind === 'pcre') {
      if (part.feedBack && (buffer === 'payload' || buffer === 'http.header')) unsupported(`'$' in ${buffer}`)
      if (part.relative && part.feedFront) unsupported("'^' of every line in a relative pcre")
      continue
    }
    if (buffer === 'http.host' && (part.nocase || part.bytes.some(byte => byte >= 65 && byte <= 90)))
      malformed('http.host is in lower case: neither capitals nor nocase')
    if (part.depth !== undefined && part.depth < part.bytes.length)
      malformed(`depth ${part.depth} is less than the content's ${part.bytes.length} bytes`)
    if (part.within !== undefined && part.within < part.bytes.length)
      malformed(`within ${part.within} is less than the content's ${part.bytes.length} bytes`)
    if (isRelative(part) && (part.offset !== undefined || part.depth !== undefined))
      unsupported('offset or depth beside distance or within')
  }
}

function number(text: string, low: number, high: number, name: string): number {
  if (/^[a-z_]/i.test(text)) unsupported(`${name} by a variable`)
  const value = /^-?\d+$/.test(text) ? Number(text) : Number.NaN
  if (!(value >= low && value <= high)) malformed(`${name} ${text.slice(0, 40)}: allowed: ${low} to ${high}`)
  return value
}

function unsupported(why: string): never {
  throw new DetourError('unsupported', why)
}

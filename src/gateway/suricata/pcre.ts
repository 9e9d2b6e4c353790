// A rule's `pcre`: translated to the language of regex.ts, whose automata never backtrack. What that cannot say is refused.

import { DetourError } from '../../errors.ts'
import type { BufferName, Expression } from './model.ts'

const VERTICAL = '\\n\\v\\f\\r\\x85'

/** Flags that say where to look (Suricata 7, "pcre modifiers"). */
const BUFFER_FLAGS: Record<string, BufferName> = {
  U: 'http.uri',
  I: 'http.uri.raw',
  H: 'http.header',
  M: 'http.method',
  V: 'http.user_agent',
  W: 'http.host',
}

/** Takes `"/expression/flags"` apart, without its quotes; `buffer` is undefined where no flag says it. Throws DetourError. */
export function readExpression(
  text: string,
  negated: boolean,
): { expression: Expression; buffer: BufferName | undefined } {
  const [, body, flags] = /^\/(.*)\/([A-Za-z]*)$/s.exec(text) ?? []
  if (body === undefined) return refuse('write pcre:"/expression/flags"')
  let buffer: BufferName | undefined
  for (const flag of flags) {
    const named = BUFFER_FLAGS[flag]
    if (named !== undefined && buffer !== undefined && buffer !== named)
      refuse(`flag ${flag}: another buffer is named already`)
    buffer ??= named
    // B (the packet's bytes as they are) and O (no limit of steps) change nothing here.
    if (named === undefined && !'ismRBO'.includes(flag)) refuse(`flag ${flag} is not supported`)
  }
  const lines = flags.includes('m')
  // NB: `(?i)` holds for the whole only where it comes first.
  const inline = /^\(\?i\)/.test(body)
  const { source, front, back } = translated(inline ? body.slice(4) : body, lines, flags.includes('s'))
  return {
    expression: {
      kind: 'pcre',
      source,
      flags: inline || flags.includes('i') ? 'is' : 's',
      negated,
      relative: flags.includes('R'),
      feedFront: front,
      feedBack: back,
    },
    buffer,
  }
}

/**
 * The expression with what PCRE means otherwise than JavaScript said out: a dot is all but a line feed, bytes outside ASCII are
 * bytes, `\v` is vertical white space. `^` of every line and `$` become line feeds, which whoever searches puts around the text.
 */
function translated(body: string, lines: boolean, dotAll: boolean): { source: string; front: boolean; back: boolean } {
  let source = ''
  let inBrackets = false
  let front = false
  let back = false
  for (let at = 0; at < body.length; at++) {
    const c = body[at]
    if (c === '\\') {
      const escaped = body[++at] ?? ''
      if (escaped === 'v') source += inBrackets ? VERTICAL : `[${VERTICAL}]`
      else source += `\\${escaped}`
    } else if (c.charCodeAt(0) > 127) source += `\\x${c.charCodeAt(0).toString(16)}`
    else if (inBrackets) {
      if (c === '[' && ':.='.includes(body[at + 1])) refuse('POSIX classes such as [:alpha:] are not supported')
      inBrackets = c !== ']'
      source += c === '[' ? '\\[' : c
    } else if (c === '[') {
      inBrackets = true
      source += c
      if (body[at + 1] === '^') source += body[++at]
      if (body[at + 1] === ']') refuse("'[]': write \\] for a bracket in brackets")
    } else if (c === '.') source += dotAll ? '.' : '[^\\n]'
    else if (c === '^' && at === 0 && lines) {
      front = true
      source += '\\n'
    } else if (c === '$' && at === body.length - 1) {
      back = true
      source += '\\n'
    } else source += c
  }
  if ((front || back) && hasChoice(body))
    refuse("'^' of every line, and '$', beside alternatives: write them as (?:a|b)")
  return { source, front, back }
}

/** A choice outside brackets and groups. */
function hasChoice(body: string): boolean {
  const plain = body.replace(/\\./gs, '').replace(/\[[^\]]*\]/gs, '')
  let depth = 0
  for (const c of plain) {
    if (c === '(') depth++
    if (c === ')') depth--
    if (c === '|' && depth === 0) return true
  }
  return false
}

function refuse(why: string): never {
  throw new DetourError('unsupported', why)
}

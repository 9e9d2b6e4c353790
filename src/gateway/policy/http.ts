// What a policy says of HTTP requests: expressions that must match the whole of method, path and host.

import { DetourError } from '../../errors.ts'
import { type Automaton, compilePattern, STATE } from '../automaton.ts'
import type { HttpRule } from './model.ts'

/** A rule as Cilium writes it (api/v1 PortRuleHTTP). */
export interface WrittenHttpRule {
  method?: string
  path?: string
  host?: string
  /** Each `Name: value`, or `Name` alone, which the request must have. */
  headers: string[]
  headerMatches: { name: string; value: string }[]
}

/** Makes the expressions of a rule into automata; throws DetourError naming the one that cannot be. */
export function compileHttpRule(rule: WrittenHttpRule): HttpRule {
  const method = whole(rule.method, 'method')
  const path = whole(rule.path, 'path')
  const host = whole(rule.host, 'host')
  const wanted = [...rule.headers.map(splitHeader), ...rule.headerMatches]
  return {
    text: describe(rule),
    matches: request =>
      method(request.method) &&
      path(request.path) &&
      host(request.host) &&
      wanted.every(({ name, value }) => {
        const found = request.headers.filter(([one]) => one.toLowerCase() === name.toLowerCase())
        // Envoy compares with all of one name together, so that a second one does not pass beside the first.
        return found.length > 0 && (value === undefined || found.map(([, one]) => one).join(',') === value)
      }),
  }
}

// NB: the end is marked by a byte that no header can contain, because automata know no `$`.
const END = 0

function whole(source: string | undefined, field: string): (text: string) => boolean {
  if (source === undefined || source === '') return () => true
  if (/\[\^?\]|\[[:.=]/.test(source.replaceAll(/\\./gs, '')))
    throw new DetourError(
      'bad-config',
      `${field} ${JSON.stringify(source)}: classes such as [:alpha:] and [] are not supported`,
    )
  let automaton: Automaton
  try {
    automaton = compilePattern({ regex: `^(?:${source.replace(/^\^/, '').replace(/(?<!\\)\$$/, '')})\\x00`, flags: '' })
  } catch (error) {
    throw new DetourError('bad-config', `${field} ${JSON.stringify(source)}: ${(error as Error).message}`)
  }
  return text => {
    if (text.includes('\0')) return false
    const bytes = Uint8Array.from([...Buffer.from(text, 'latin1'), END])
    return automaton.run(bytes, 0, bytes.length, STATE.START) === STATE.MATCH
  }
}

function splitHeader(text: string): { name: string; value: string | undefined } {
  const [, name, value] = /^([^:]+?)\s*(?::\s*(.*))?$/.exec(text) ?? [text, text, undefined]
  return { name, value }
}

function describe({ method, path, host, headers, headerMatches }: WrittenHttpRule): string {
  const parts = [
    method ?? 'any method',
    path ?? 'any path',
    ...(host === undefined ? [] : [`host ${host}`]),
    ...headers.map(header => `header ${header}`),
    ...headerMatches.map(({ name, value }) => `header ${name}: ${value}`),
  ]
  return parts.join(' ')
}

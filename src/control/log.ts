// The log of a long-running face: one line an event on standard output, as JSON or as text.
//
// Written at once by pino, without its threads: what was said before a crash is there. Strings from elsewhere (pod names) cannot
// begin a line of their own in either format.

import { writeSync } from 'node:fs'
import { isatty } from 'node:tty'
import { pino, stdTimeFunctions } from 'pino'
import type { LogLevel } from './config.ts'

/** What a line is about, for programs that read it. */
export interface LogFields {
  /** `info` when not given. */
  level?: LogLevel
  /** What happened, in a fixed word or two: `alarm raised`. */
  event?: string
  component?: string
  attachment?: string
  endpoint?: string
  [field: string]: string | number | boolean | undefined
}

/** Takes a sentence for people and, where it has any, fields for programs. Whoever takes sentences only is one, too. */
export type Log = (text: string, fields?: LogFields) => void

export interface LogOptions {
  level: LogLevel
  /** `auto`: text on a terminal, else JSON. */
  format: 'auto' | 'json' | 'text'
  /** Where lines go; standard output when not given. */
  fd?: number
}

/** Opens the log; there is nothing to close. */
export function openLog({ level, format, fd = 1 }: LogOptions): Log {
  const json = format === 'json' || (format === 'auto' && !isatty(fd))
  const write = lineWriter(fd)
  const stream = { write: (line: string) => write(json ? line : textLine(line)) }
  const formatters = { level: (label: string) => ({ level: label }) }
  const logger = pino({ level, base: { pid: process.pid }, timestamp: stdTimeFunctions.isoTime, formatters }, stream)
  return (text, { level: at = 'info', ...fields } = {}) => logger[at](fields, text)
}

/** `2026-11-22T06:20:00.000Z warn  endpoint gw-a does not answer (event="alarm raised")`, of a line as pino makes it. */
function textLine(line: string): string {
  const { time, level, pid: _, msg, ...fields } = JSON.parse(line) as Record<string, unknown>
  const named = Object.entries(fields).map(([name, value]) => `${name}=${quoted(value)}`)
  const behind = named.length === 0 ? '' : ` (${named.join(' ')})`
  return `${escaped(`${time} ${String(level).padEnd(5)} ${msg}${behind}`)}\n`
}

const quoted = (value: unknown) => (/^[\w.:/-]+$/.test(String(value)) ? String(value) : JSON.stringify(value))

/** Control characters, and those that change the direction of writing or break lines, as JSON would write them. */
function escaped(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, c => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

const TRIES = 20
const pause = new Int32Array(new SharedArrayBuffer(4))

/** Writes lines. A pipe that nobody empties, or that is gone, loses some; packets go on. */
function lineWriter(fd: number): (line: string) => void {
  let torn = false
  return line => {
    let rest = Buffer.from(torn ? `\n${line}` : line)
    const whole = rest.length
    for (let i = 0; i < TRIES && rest.length > 0; i++) {
      try {
        rest = rest.subarray(writeSync(fd, rest))
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') return
        Atomics.wait(pause, 0, 0, 1)
      }
    }
    torn = rest.length > 0 && (torn || rest.length < whole)
  }
}

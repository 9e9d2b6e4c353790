// What people see: aligned tables, numbers with units, colours and a progress line.

/** A column of a table. */
export interface Column {
  title: string
  /** Numbers go right. */
  right?: boolean
  /** Left out when every row says the same. */
  varying?: boolean
}

/** SGR codes of the few styles in use. */
const STYLE = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33 } as const
export type Style = keyof typeof STYLE

/** Paints text for one stream: plain unless it is a terminal and NO_COLOR is not set (no-color.org). */
export type Paint = (style: Style, text: string) => string

export function painter(stream: { isTTY?: boolean }, env: NodeJS.ProcessEnv = process.env): Paint {
  const coloured = stream.isTTY === true && !env.NO_COLOR && env.TERM !== 'dumb'
  return (style, text) => (coloured ? `\x1b[${STYLE[style]}m${text}\x1b[0m` : text)
}

/** Replaces control characters, so that a name from elsewhere cannot steer the terminal. */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, '\ufffd')
}

/** Lines of a table, the titles first; cells are made printable, columns are two spaces apart. */
export function table(columns: Column[], rows: string[][], paint: Paint = (_, text) => text): string[] {
  const shown = columns
    .map((column, i) => ({ ...column, cells: rows.map(row => printable(row[i] ?? '')) }))
    .filter(({ varying, cells }) => !varying || cells.some(cell => cell !== cells[0]))
  const widths = shown.map(({ title, cells }) => cells.reduce((w, cell) => Math.max(w, cell.length), title.length))
  const line = (cell: (column: { title: string; cells: string[] }) => string) =>
    shown
      .map((column, i) => (column.right ? cell(column).padStart(widths[i]) : cell(column).padEnd(widths[i])))
      .join('  ')
      .trimEnd()
  return [
    paint(
      'bold',
      line(column => column.title),
    ),
    ...rows.map((_, r) => line(column => column.cells[r])),
  ]
}

/** A count with its digits grouped: `1,234,567`. */
export function count(n: number): string {
  return Math.round(n).toLocaleString('en-US')
}

/** A quantity of three significant digits with a decimal prefix: `14.3 G`, `343 k`, `7`. */
export function quantity(n: number, unit = ''): string {
  const prefixes = ['', 'k', 'M', 'G', 'T', 'P']
  let at = 0
  let value = Math.abs(n)
  while (value >= 999.5 && at < prefixes.length - 1) {
    value /= 1000
    at++
  }
  const digits = value >= 99.95 || (at === 0 && Number.isInteger(value)) ? 0 : value >= 9.995 ? 1 : 2
  return `${n < 0 ? '-' : ''}${value.toFixed(digits)} ${prefixes[at]}${unit}`.trimEnd()
}

/** Bytes: `1.50 MB`. */
export const bytes = (n: number) => quantity(n, 'B')

/** Bits per second, of bytes per second: `14.3 Gbit/s`. */
export const bitRate = (bytesPerSecond: number) => quantity(bytesPerSecond * 8, 'bit/s')

/** Packets per second: `343 kpps`. */
export const packetRate = (packetsPerSecond: number) => quantity(packetsPerSecond, 'pps')

/** A duration of two units at most: `45 µs`, `870 ms`, `3.2 s`, `5m 12s`, `2h 3m`, `4d 1h`. */
export function duration(ms: number): string {
  if (ms > 0 && ms < 0.9995) return `${Math.ceil(ms * 1000)} µs`
  if (ms < 1000) return `${Math.round(ms)} ms`
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`
  const seconds = Math.round(ms / 1000)
  const [d, h, m, s] = [seconds / 86400, (seconds / 3600) % 24, (seconds / 60) % 60, seconds % 60].map(Math.floor)
  return d > 0 ? `${d}d ${h}h` : h > 0 ? `${h}h ${m}m` : `${m}m ${s}s`
}

/** A line that is redrawn while something long goes on: on a terminal only, at most ten times a second. */
export class Progress {
  private readonly stream: NodeJS.WriteStream
  private next = 0
  private drawn = false

  constructor(stream: NodeJS.WriteStream = process.stderr) {
    this.stream = stream
  }

  /** Shows the text, or not when the last one is too fresh. */
  show(text: string): void {
    const now = performance.now()
    if (!this.stream.isTTY || now < this.next) return
    this.next = now + 100
    this.drawn = true
    this.stream.write(`\r\x1b[K${printable(text).slice(0, (this.stream.columns || 80) - 1)}`)
  }

  /** Takes the line away. */
  clear(): void {
    if (this.drawn) this.stream.write('\r\x1b[K')
    this.drawn = false
    this.next = 0
  }
}

// The floors of docs/architecture.md: imports go to the same floor or down. Read from the import lines of the sources.

import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, posix, relative } from 'node:path'
import { describe, expect, it } from 'vitest'

const ROOT = new URL('..', import.meta.url).pathname

const FLOOR: Record<string, number> = {
  'drop.ts': 0,
  'errors.ts': 0,
  wire: 0,
  os: 0,
  memory: 1,
  device: 2,
  flow: 3,
  pipeline: 4,
  control: 5,
  node: 6,
  gateway: 6,
  cni: 6,
  conform: 6,
  lab: 6,
  cli: 7,
}

/** The files of control that the thin plugin may use, besides errors.ts. */
const CNI_MAY_USE = ['src/cni/', 'src/errors.ts', 'src/control/client.ts']

interface Import {
  from: string
  /** A path from the root for our own files, or the package. */
  to: string
  line: number
}

function sources(folder: string): string[] {
  return readdirSync(join(ROOT, folder), { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile() && entry.name.endsWith('.ts'))
    .map(entry => relative(ROOT, join(entry.parentPath, entry.name)))
    .sort()
}

// Static and dynamic imports, re-exports, and require.
const SPECIFIER = /(?:^|\s)(?:import|export)\b[^'";]*?from\s*'([^']+)'|(?:\bimport|\brequire)\s*\(?\s*'([^']+)'/g

function imports(from: string): Import[] {
  const text = readFileSync(join(ROOT, from), 'utf8').replaceAll(/^\s*(\/\/|\*|\/\*).*$/gm, '')
  return [...text.matchAll(SPECIFIER)].map(match => {
    const specifier = match[1] ?? match[2]
    const to = specifier.startsWith('.') ? posix.join(dirname(from), specifier) : specifier
    return { from, to, line: text.slice(0, match.index).split('\n').length }
  })
}

const part = (path: string) => path.split('/')[1]
const show = ({ from, line, to }: Import) => `${from}:${line} imports ${to}`

const files = sources('src')
const all = files.flatMap(imports)
const own = all.filter(({ to }) => to.startsWith('src/'))

describe('the floors', () => {
  it('every folder of src has its floor', () => {
    expect([...new Set(files.map(part))].filter(name => FLOOR[name] === undefined)).toEqual([])
  })

  it('the import lines are found', () => {
    expect(own.length).toBeGreaterThan(files.length / 2)
    const text = imports('src/wire/udp.ts').map(({ to }) => to)
    expect(text).toEqual(['src/drop.ts', 'src/wire/bytes.ts', 'src/wire/checksum.ts'])
  })

  it('no import goes up', () => {
    expect(own.filter(({ from, to }) => FLOOR[part(to)] > FLOOR[part(from)]).map(show)).toEqual([])
  })

  it('nothing in src imports workers, benches or tests', () => {
    expect(all.filter(({ to }) => /^(workers|bench|test)\//.test(to)).map(show)).toEqual([])
  })

  it('workers are entry files: they import no command and no test', () => {
    const above = sources('workers')
      .flatMap(imports)
      .filter(({ to }) => /^(test|bench)\/|^src\/cli\//.test(to))
    expect(above.map(show)).toEqual([])
  })

  it('only os speaks to the system by FFI', () => {
    const ffi = all.filter(({ from, to }) => to === 'koffi' && !from.startsWith('src/os/'))
    expect(ffi.map(show)).toEqual([])
    expect(all.some(({ to }) => to === 'koffi') || !files.some(file => file.startsWith('src/os/'))).toBe(true)
  })

  it('wire does no I/O', () => {
    const io = all.filter(({ from, to }) => from.startsWith('src/wire/') && to.startsWith('node:'))
    expect(io.map(show)).toEqual([])
  })

  it('the plugin is thin: control’s client, errors, and nothing native', () => {
    const thick = all.filter(
      ({ from, to }) =>
        from.startsWith('src/cni/') &&
        (to.startsWith('src/') ? !CNI_MAY_USE.some(allowed => to.startsWith(allowed)) : ['koffi', 'zod'].includes(to)),
    )
    expect(thick.map(show)).toEqual([])
  })
})

// Directories as primary plugins leave them, the reference implementation's view of them, and the installer as a process.

import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach } from 'vitest'

const here = fileURLToPath(new URL('.', import.meta.url))
export const FIXTURES = fileURLToPath(new URL('../../../fixtures/conflists', import.meta.url))
const INSTALLER = new URL('../../../dist/src/cni/install/command.js', import.meta.url).href

/** The folders of `fixtures/conflists`. */
export const PRIMARIES = readdirSync(FIXTURES, { withFileTypes: true }).flatMap(entry =>
  entry.isDirectory() ? [entry.name] : [],
)

/** A node's two directories. */
export interface Node {
  confDir: string
  binDir: string
  /** A file of the configuration directory. */
  file(name: string): string
  read(name: string): string
  /** Names and contents of all files of the configuration directory, also hidden ones. */
  all(): Record<string, string>
}

const made: string[] = []
afterEach(() => {
  for (const folder of made.splice(0)) rmSync(folder, { recursive: true, force: true })
})

/** A node on which this primary plugin is installed; none, for an empty directory. */
export function node(primary?: string): Node {
  const root = mkdtempSync(join(tmpdir(), 'detour-install-'))
  made.push(root)
  const confDir = join(root, 'net.d')
  const binDir = join(root, 'bin')
  mkdirSync(confDir)
  mkdirSync(binDir)
  if (primary !== undefined) cpSync(join(FIXTURES, primary), confDir, { recursive: true })
  const file = (name: string) => join(confDir, name)
  const read = (name: string) => readFileSync(file(name), 'utf8')
  const all = () => Object.fromEntries(readdirSync(confDir).map(name => [name, read(name)]))
  return { confDir, binDir, file, read, all }
}

/** The network that libcni takes from a directory. */
export interface Network {
  file: string
  name: string
  cniVersion: string
  plugins: Record<string, unknown>[]
  skipped: string[]
}

const GOPATH = '/usr/share/gocode'
/** Why the reference implementation cannot be asked. */
export const noLibcni =
  spawnSync('go', ['version']).status !== 0 ||
  !existsSync(join(GOPATH, 'src/github.com/containernetworking/cni/libcni'))

/** Asks libcni for the networks of directories. */
export function libcni(...directories: string[]): Network[] {
  const env = { ...process.env, GOPATH, GO111MODULE: 'off' }
  const out = execFileSync('go', ['run', join(here, 'libcni.go'), ...directories], { env, encoding: 'utf8' })
  return out
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
}

/** How the installer ended. */
export interface Outcome {
  status: number | null
  stdout: string
  stderr: string
  /** The lines of standard output, when it was called with --json. */
  events: Record<string, unknown>[]
}

const RUN = `import { runInstaller } from '${INSTALLER}'
process.exitCode = await runInstaller(process.argv.slice(1), process.stdout).catch(error => {
  console.error(error.code + ': ' + error.message)
  return error.code === 'usage' ? 2 : 1
})`

/** Starts the compiled installer. */
export function start(args: string[], uid?: number) {
  return spawn(process.execPath, ['--input-type=module', '-e', RUN, '--', ...args], {
    uid,
    env: { PATH: process.env.PATH },
  })
}

/** Runs the compiled installer to its end. */
export function installer(args: string[], uid?: number): Promise<Outcome> {
  const child = start(args, uid)
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', text => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', text => (stderr += text))
  return new Promise(resolve => {
    child.on('close', status => {
      const lines = stdout.split('\n').filter(line => line.startsWith('{'))
      const events = args.includes('--json') ? lines.map(line => JSON.parse(line)) : []
      resolve({ status, stdout, stderr, events })
    })
  })
}

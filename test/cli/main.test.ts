// The command line: help, wrong usage, errors and their exit statuses.

import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { detour } from './run.ts'

const COMMANDS = [
  'lab',
  'gateway',
  'profiles',
  'fault',
  'conform',
  'policy',
  'replay',
  'diff',
  'encap',
  'decap',
  'show',
  'trace',
]

describe('help', () => {
  test('names every command and shows examples', async () => {
    const { status, stdout, stderr } = await detour(['--help'])
    expect([status, stderr]).toEqual([0, ''])
    for (const command of COMMANDS) {
      expect(stdout).toMatch(new RegExp(`^  ${command} `, 'm'))
      expect(stdout).toMatch(new RegExp(`^  .*detour ${command} `, 'm'))
    }
  })

  test.each(COMMANDS)('of %s is its own', async command => {
    const { status, stdout } = await detour([command, '--help'])
    expect(status).toBe(0)
    expect(stdout).toContain(`Usage: detour ${command} `)
    expect((await detour(['help', command])).stdout).toBe(stdout)
  })

  const BELOW = ['fault add', 'fault list', 'fault clear', 'policy check', 'policy explain']
  test.each([...COMMANDS, ...BELOW])('of %s has examples of itself', async words => {
    const { stdout } = await detour([...words.split(' '), '--help'])
    const [, examples] = stdout.split(/^Examples.*:$/m)
    expect(examples).toContain(` detour ${words}`)
    expect(stdout).not.toContain('(default: [])')
  })

  test('of a Node.js that is too old says which will do, as package.json has it', () => {
    const { engines } = JSON.parse(readFileSync('package.json', 'utf8'))
    const [, oldest] = /^>=(\d+\.\d+)$/.exec(engines.node) ?? []
    const pretend = 'Object.defineProperty(process, "versions", { value: { ...process.versions, node: "20.18.9" } })'
    const main = ['--import', `data:text/javascript,${pretend}`, 'dist/src/cli/main.js', '--version']
    const { status, stderr } = spawnSync(process.execPath, main, { encoding: 'utf8' })
    expect([status, stderr]).toEqual([1, `detour: Node.js ${oldest} or later is needed; this is ${process.version}\n`])
  })

  test('the version is that of the package', async () => {
    const { version } = JSON.parse(readFileSync('package.json', 'utf8'))
    expect(await detour(['--version'])).toEqual({ status: 0, stdout: `${version}\n`, stderr: '' })
  })
})

describe('wrong usage exits with 2 and shows the usage line', () => {
  test.each([
    [[], 'Usage: detour '],
    [['shwo'], 'Did you mean show?'],
    [['--verison'], 'Did you mean --version?'],
    [['show'], 'Usage: detour show '],
    [['show', 'flws'], 'did you mean "flows"?'],
    [['show', 'stats', '--jsno'], 'Did you mean --json?'],
    [['show', 'stats', 'drops'], 'too many arguments'],
    [['show', 'flows', '--limit', '0'], 'Allowed: 1 to 5000.'],
    [['show', 'flows', '--sort', 'size'], 'bytes, packets, age, idle'],
    [['show', 'flows', '--filter', 'prot=tcp'], 'address, attachment, port, protocol, verdict; did you mean "port"?'],
    [['show', 'flows', '--filter', 'port=http'], 'http is no port'],
    [['show', 'stats', '--filter', 'port=80'], '--filter is for flows, not for stats'],
    [['show', 'drops', '--watch', 'often'], 'Allowed: 0.1 to 3600 seconds.'],
    [['trace', '--count', '0'], 'Allowed: 1 to 1000000.'],
    [['trace', '--filter', 'verdict=alow'], 'alow is no verdict'],
    [['trace', '--filter', 'porte=1'], 'did you mean "port"?'],
    [['gateway', '--listen', '127.0.0.1', '--vni', '16777216'], 'Allowed: 0 to 16777215.'],
    [['lab', '--run', 'My Lab'], 'allowed: one to twelve lower-case letters and digits'],
    [['gateway', '--listen', '127.0.0.1', '--offload', 'plain'], '--offload plain: only with --interface'],
    [['gateway', '--listen', '127.0.0.1', '--inline', 'veth0'], 'Allowed: two interfaces'],
    [['gateway', '--listen', '127.0.0.1', '--attach', 'tcx'], '--attach tcx: only with --interface'],
  ])('%j', async (args, sentence) => {
    const { status, stdout, stderr } = await detour(args)
    expect([status, stdout]).toEqual([2, ''])
    expect(stderr).toContain(sentence)
    expect(stderr).toContain('Usage: detour ')
  })
})

describe('an error', () => {
  test('is one line, and exit status 1', async () => {
    const { status, stdout, stderr } = await detour(['show', 'stats', '--socket', '/nonexistent/lab.sock'])
    expect([status, stdout]).toEqual([1, ''])
    expect(stderr).toBe('detour: control socket /nonexistent/lab.sock does not exist; is Detour running?\n')
  })

  test('comes with its stack only for DETOUR_DEBUG=1', async () => {
    const { status, stderr } = await detour(['show', 'stats', '-s', '/nonexistent/lab.sock'], { DETOUR_DEBUG: '1' })
    expect(status).toBe(1)
    expect(stderr).toMatch(/^DetourError: .*\n +at /)
  })
})

test('a reader that leaves early is no failure', () => {
  const script = `"$0" dist/src/cli/main.js --help | true; echo "\${PIPESTATUS[0]}"`
  const { stdout, stderr } = spawnSync('bash', ['-c', script, process.execPath], { encoding: 'utf8' })
  expect([stdout, stderr]).toEqual(['0\n', ''])
})

test.each(['show', 'trace'])('%s loads no native code', command => {
  const script = 'LD_DEBUG=files "$0" dist/src/cli/main.js "$1" --help 2>&1 | grep -c "file=.*koffi.*generating"'
  expect(spawnSync('bash', ['-c', script, process.execPath, command], { encoding: 'utf8' }).stdout).toBe('0\n')
})

// Whatever the plugin is given, it answers with a CNI error object and exit status 1, or does what was asked; never a stack trace.

import fc from 'fast-check'
import { expect, it } from 'vitest'
import { PATIENCE_MS, plugin } from '../../src/cni/plugin.ts'
import { spawnPlugin } from './process.ts'

const VERBS = ['ADD', 'DEL', 'CHECK', 'STATUS', 'GC', 'VERSION']
const VALID: Record<string, unknown> = {
  cniVersion: '1.1.0',
  name: 'net',
  type: 'detour-cni',
  socket: '/nonexistent/detour.sock',
  inspect: 'always',
  failMode: 'open',
  excludeNamespaces: ['a'],
  unchained: false,
  runtimeConfig: { 'io.kubernetes.cri.pod-annotations': { 'detour.dev/inspect': 'true' } },
  prevResult: { interfaces: [{ name: 'eth0', sandbox: '/x' }], ips: [{ address: '10.0.0.1/8', interface: 0 }] },
  'cni.dev/attachments': [{ containerID: 'a', ifname: 'eth0' }],
}
const ENV = { CNI_CONTAINERID: 'c0ffee', CNI_IFNAME: 'eth0', CNI_NETNS: '/x', CNI_ARGS: 'K8S_POD_NAME=a' }

// A valid call of which something was replaced by anything at all.
const environment = fc
  .record({
    CNI_COMMAND: fc.oneof({ weight: 9, arbitrary: fc.constantFrom(...VERBS) }, fc.string({ unit: 'binary' })),
    more: fc.dictionary(fc.constantFrom(...Object.keys(ENV)), fc.string({ unit: 'binary' }), { maxKeys: 2 }),
  })
  .map(({ CNI_COMMAND, more }) => ({ ...ENV, ...more, CNI_COMMAND }))
const json = fc.jsonValue({ maxDepth: 4, stringUnit: 'binary' })
const replaced = fc.dictionary(fc.constantFrom(...Object.keys(VALID)), json, { maxKeys: 2 })
const input = fc.oneof(
  replaced.map(more => JSON.stringify({ ...VALID, ...more })),
  fc.tuple(fc.nat({ max: 600 }), fc.string({ unit: 'binary' })).map(([at, text]) => {
    const valid = JSON.stringify(VALID)
    return valid.slice(0, at) + text + valid.slice(at + text.length)
  }),
  json.map(value => JSON.stringify(value)),
)
const bytes = fc.oneof(
  input.map(text => Buffer.from(text)),
  fc.uint8Array({ maxLength: 300 }),
)

/** Where no daemon is, ADD, CHECK, STATUS and GC must fail; VERSION and DEL may go well. */
function judge(command: string, status: number, output: string): void {
  if (status === 0) {
    expect(['VERSION', 'DEL', 'ADD', 'CHECK']).toContain(command)
    if (command === 'VERSION') expect(JSON.parse(output).supportedVersions).toHaveLength(5)
    else if (command === 'DEL' || command === 'CHECK') expect(output).toBe('')
    return
  }
  expect(status).toBe(1)
  const { cniVersion, code, msg, details, ...rest } = JSON.parse(output)
  expect(rest).toEqual({})
  expect(cniVersion).toMatch(/^\d\.\d\.\d$/)
  expect([1, 2, 4, 5, 6, 7, 11, 50, 102]).toContain(code)
  expect(msg).toMatch(/^.+$/s)
  expect(details).toBeTypeOf('string')
  expect(`${msg} ${details}`).not.toMatch(/\n +at |TypeError|RangeError/)
}

it('anything: an error object, or what was asked', async () => {
  await fc.assert(
    fc.asyncProperty(environment, bytes, async (env, stdin) => {
      const { status, output } = await plugin(env, [stdin], PATIENCE_MS, 0)
      judge(env.CNI_COMMAND, status, output)
    }),
    { numRuns: 2000 },
  )
})

it('the same of the process, whose standard error stays empty', async () => {
  await fc.assert(
    fc.asyncProperty(environment, bytes, async (env, stdin) => {
      // The operating system cannot hand over such variables.
      fc.pre(Object.values(env).every(value => !value.includes('\0') && Buffer.from(value).toString() === value))
      const { status, stdout, stderr } = await spawnPlugin(env, stdin)
      judge(env.CNI_COMMAND, status!, stdout)
      expect(stderr).toBe('')
    }),
    { numRuns: 20 },
  )
})

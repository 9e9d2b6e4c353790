// A million packets to the endpoint and back: no allocation, no copy, no frame lost.

import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'

const PACKETS = 1_000_000
// Reading the heap costs some.
const SMALL = 64 * 1024

function program(): string {
  const stripsTypes = (process.features as { typescript?: unknown }).typescript
  const path = stripsTypes ? './steady-heap.ts' : '../../dist/test/pipeline/steady-heap.js'
  const file = fileURLToPath(new URL(path, import.meta.url))
  if (!existsSync(file)) throw new Error(`${file} does not exist; run "npm run build" first`)
  return file
}

test.each([
  { kind: 'geneve', outer: 4, inner: 4 },
  { kind: 'geneve', outer: 6, inner: 6 },
  { kind: 'vxlan', outer: 4, inner: 6 },
  { kind: 'vxlan', outer: 6, inner: 4 },
])('$kind over IPv$outer around IPv$inner', ({ kind, outer, inner }) => {
  const args = ['--expose-gc', program(), kind, outer, inner, PACKETS, SMALL].map(String)
  const { stdout, stderr, status } = spawnSync(process.execPath, args, { encoding: 'utf8' })
  expect(status, stderr).toBe(0)
  // Without a collection in between, which would hide what was allocated.
  const seen = JSON.parse(stdout)
  expect(seen).toMatchObject({ copied: 0, lost: 0 })
  expect(seen.allocated).toBeLessThan(SMALL)
})

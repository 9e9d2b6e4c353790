// Vitest's settings: every test file in its own process, because network namespaces and FFI handles belong to threads.
import { defineConfig } from 'vitest/config'
import { Skips } from './skips.ts'

export default defineConfig({
  test: {
    root: new URL('..', import.meta.url).pathname,
    include: ['test/**/*.test.ts'],
    reporters: [new Skips(), 'default'],
    pool: 'forks',
    // Against what never ends: a loaded machine takes ten times as long as a quiet one.
    testTimeout: 240_000,
    hookTimeout: 240_000,
    expect: { poll: { timeout: 60_000 } },
  },
})

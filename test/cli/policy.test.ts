// detour policy, as people run it.

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { detour } from './run.ts'

const POLICY = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: db, namespace: shop }
spec:
  podSelector: { matchLabels: { app: db } }
  ingress:
    - from: [{ podSelector: { matchLabels: { app: web } } }]
      ports: [{ port: postgres }]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: { name: web, namespace: shop }
spec:
  endpointSelector: { matchLabels: { app: web } }
  ingress:
    - toPorts: [{ ports: [{ port: '80' }], rules: { http: [{ method: GET, path: '/public.*' }] } }]
`

const pod = (name: string, ip: string, ports: object[] = []) => ({
  kind: 'Pod',
  metadata: { name, namespace: 'shop', labels: { app: name } },
  spec: { containers: [{ ports }] },
  status: { phase: 'Running', podIP: ip },
})

describe('detour policy', () => {
  let folder: string
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'detour-policy-cli-'))
    mkdirSync(join(folder, 'policies'))
    writeFileSync(join(folder, 'policies', 'policy.yaml'), POLICY)
    const db = pod('db', '10.0.0.2', [{ name: 'postgres', containerPort: 5432 }])
    writeFileSync(join(folder, 'cluster.json'), JSON.stringify({ kind: 'List', items: [pod('web', '10.0.0.1'), db] }))
  })
  afterAll(() => rmSync(folder, { recursive: true }))

  const explain = (...args: string[]) =>
    detour([
      'policy',
      'explain',
      '--policy',
      join(folder, 'policies'),
      '--inventory',
      join(folder, 'cluster.json'),
      ...args,
    ])

  it('explains an allowed flow by its rule', async () => {
    const { status, stdout } = await explain('--from', '10.0.0.1', '--to', 'shop/db', '--port', '5432')
    expect(status).toBe(0)
    expect(stdout).toContain('shop/web → shop/db TCP 5432: allowed')
    expect(stdout).toMatch(
      /arriving shop\/db: allowed by NetworkPolicy shop\/db \(.*policy\.yaml, document 1\): ingress\[0\]/,
    )
  })

  it('exits with 1 for a denied one', async () => {
    const { status, stdout } = await explain('--from', 'shop/web', '--to', 'shop/db', '--port', '5433', '--json')
    expect(status).toBe(1)
    expect(JSON.parse(stdout)).toMatchObject({
      verdict: 'deny',
      egress: { verdict: 'allow' },
      ingress: { reason: 'no rule allows this ingress' },
    })
  })

  it('judges a request', async () => {
    const to = ['--from', '203.0.113.1', '--to', 'shop/web', '--port', '80']
    expect((await explain(...to)).stdout).toContain('depends on the request')
    expect(await explain(...to, '--path', '/public/1')).toMatchObject({ status: 0 })
    // In the form that it has for a gateway.
    expect(await explain(...to, '--path', '/a/../%70ublic/1')).toMatchObject({ status: 0 })
    expect(await explain(...to, '--path', '/public/../1')).toMatchObject({ status: 1 })
    expect(await explain(...to, '--method', 'POST', '--path', '/public/1')).toMatchObject({ status: 1 })
  })

  it('checks manifests, and says what is wrong with them', async () => {
    const { status, stdout } = await detour(['policy', 'check', join(folder, 'policies')])
    expect(status).toBe(0)
    expect(stdout.split('\n')[1]).toMatch(/^NetworkPolicy shop\/db +ingress +1 /)
    const wrong = join(folder, 'wrong.txt')
    writeFileSync(wrong, POLICY.replace('podSelector', 'podSelectors'))
    const refused = await detour(['policy', 'check', wrong])
    expect(refused.status).toBe(1)
    expect(refused.stderr).toMatch(/wrong\.txt, document 1: spec: unknown key "podSelectors".*podSelector/)
    expect(refused.stderr).not.toContain('    at ')
  })

  it('names a pod that is not there', async () => {
    const { status, stderr } = await explain('--from', 'shop/nobody', '--to', 'shop/db', '--port', '1')
    expect(status).toBe(1)
    expect(stderr).toContain('--from shop/nobody: no such pod')
  })
})

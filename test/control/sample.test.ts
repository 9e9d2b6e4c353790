// The printed sample: what it says is what the schema takes.

import { expect, test } from 'vitest'
import { configSchema } from '../../src/control/config.ts'
import { sampleYaml } from '../../src/control/sample.ts'
import { parseYaml } from '../../src/control/yaml.ts'

const sample = sampleYaml(configSchema, 'Title.')

test('the sample is the defaults', () => {
  expect(parseYaml(configSchema, sample, 'sample')).toEqual(configSchema.parse({}))
})

test('what has no default is there as a comment, which can be uncommented', () => {
  expect(sample).toContain('\n  # uplink:\n')
  const [tcp] = /^ {2}# tcp:\n(?: {2}# {3}.*\n)+/m.exec(sample)!
  const uncommented = tcp.replaceAll(/^ {2}# /gm, '  ').replace('# port:', 'port: 80')
  expect(parseYaml(configSchema, sample.replace(tcp, uncommented), 'sample').health.tcp).toMatchObject({
    port: 80,
    intervalMs: 1000,
  })
})

test('every line is a comment, a key or an item, and says what is allowed', () => {
  for (const line of sample.trimEnd().split('\n'))
    expect(line).toMatch(/^$|^ *# ?|^ *[A-Za-z]+:( .+)?$|^ +- (\{|[a-z]+: )/)
  expect(sample).toContain('Allowed: an integer from 20 to 60000')
  expect(sample.split('\n').filter(line => line.length > 120)).toEqual([])
})

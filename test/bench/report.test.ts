// The page of results: well formed by an XML parser's judgement, with the data in it, and text that cannot become markup.

import { spawnSync } from 'node:child_process'
import { describe, expect, it } from 'vitest'
import { renderReport } from '../../bench/report.ts'
import { made } from './results.ts'

const results = [
  made({ contender: 'objects', ratios: [1, 1, 1] }),
  made({ ratios: [2, 2.5, 3] }),
  made({ contender: 'rival', rival: true, ratios: [0.5, 0.5, 0.5] }),
  made({ bench: 'ring', question: 'nothing to see', ratios: [1, 1, 1], samples: [0, 0, 0] }),
]

const COUNT = `import sys, json, collections, xml.etree.ElementTree as tree
print(json.dumps(collections.Counter(node.tag for node in tree.fromstring(sys.stdin.read()).iter())))`

/** How many elements of each name the page has, or why it is not well formed. */
function parse(page: string): Record<string, number> | string {
  const input = page.replace('<!doctype html>', '').replaceAll(/<(meta|link|col)\b([^>]*)>/g, '<$1$2/>')
  const { stdout, stderr } = spawnSync('python3', ['-c', COUNT], { input, encoding: 'utf8' })
  return stderr === '' ? JSON.parse(stdout) : stderr
}

describe('the page', () => {
  const page = renderReport(results)

  it('is well formed, a plot a question, a bar a contender, a dot a round', () => {
    expect(parse(page)).toMatchObject({ section: 2, table: 2, rect: 4, circle: 12 })
  })

  it('says so where nothing was measured', () => {
    const empty = renderReport([])
    expect(parse(empty)).not.toHaveProperty('section')
    expect(empty).toContain('nothing was measured')
  })

  it('has medians, ratios and their spread, and what measured them', () => {
    for (const text of [
      '40.0 ns',
      '33.3 to 50.0',
      '2.50×',
      '2.00 to 3.00',
      'a machine',
      '2026-11-22 03:00 UTC',
      '3 rounds',
    ])
      expect(page).toContain(text)
    expect(page).not.toMatch(/NaN|Infinity|undefined/)
  })

  it('needs neither network nor script', () => {
    expect(page).not.toMatch(/<script|https?:|src=/)
  })

  it('escapes every text it is given', () => {
    const evil = '"><script>alert(1)</script>&'
    const given = { bench: evil, question: evil, contender: evil, unit: evil, machine: evil }
    const hostile = renderReport([made(given)])
    expect(hostile).not.toContain('<script')
    expect(parse(hostile)).toMatchObject({ rect: 1 })
    expect(hostile.split('&#34;&#62;&#60;script&#62;alert(1)&#60;/script&#62;&#38;').length).toBeGreaterThan(5)
  })
})

// The report page in a real browser: it draws, it fits, it asks for nothing, and text cannot break out.

import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { type Browser, chromium } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { writeReport } from '../../src/lab/page.ts'
import { makeReportFolder, passed } from '../../src/lab/report.ts'
import { sampleReport } from './sample.ts'

// A browser takes its time on a loaded machine.
const LIMIT_MS = 120_000
vi.setConfig({ testTimeout: LIMIT_MS, hookTimeout: LIMIT_MS })

const CHROMIUM = '/usr/bin/chromium'
const QUIET =
  '--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'
const missing = !existsSync(CHROMIUM)

it('is passed only when every step was reached and did what it should', () => {
  const report = sampleReport()
  expect(passed(report)).toBe(false)
  for (const step of report.steps) step.ok = true
  expect(passed(report)).toBe(true)
  report.steps[2].ok = null
  expect(passed(report)).toBe(false)
  expect(passed({ ...report, steps: [] })).toBe(false)
})

it('goes to a folder that is made, with those above it', () => {
  const root = mkdtempSync(join(tmpdir(), 'detour-report-'))
  try {
    makeReportFolder(join(root, 'a/b'))
    makeReportFolder(join(root, 'a/b'))
    expect(statSync(join(root, 'a/b')).isDirectory()).toBe(true)
    writeFileSync(join(root, 'file'), '')
    const folder = (path: string) => () => makeReportFolder(join(root, path))
    expect(folder('file')).toThrow(/report folder .*file: something that is not a folder is there/)
    expect(folder('file/below')).toThrow(/report folder .*below: cannot be made \(ENOTDIR/)
    // Node's own recursive mkdir does not come back from here.
    expect(() => makeReportFolder('/proc/nowhere/below')).toThrow(/cannot be made \(ENOENT/)
  } finally {
    rmSync(root, { recursive: true })
  }
})

describe.skipIf(missing)(`report page${missing ? ` (skipped: ${CHROMIUM} is not installed)` : ''}`, () => {
  let browser: Browser
  let folder: string
  let url: string
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'detour-report-'))
    url = pathToFileURL(writeReport(folder, sampleReport())).href
    browser = await chromium.launch({
      executablePath: CHROMIUM,
      args: ['--no-sandbox', ...QUIET.split(' ')],
      timeout: LIMIT_MS,
    })
  })
  afterAll(async () => {
    await browser?.close()
    rmSync(folder, { recursive: true, force: true })
  })

  it.each(['light', 'dark'] as const)(
    'draws tables and plots in %s, alone and without complaint',
    async colorScheme => {
      const page = await browser.newPage({ viewport: { width: 1200, height: 900 }, colorScheme })
      const complaints: string[] = []
      const requests: string[] = []
      page.on('console', message => {
        if (message.type() === 'error' || message.type() === 'warning') complaints.push(message.text())
      })
      page.on('pageerror', error => complaints.push(error.message))
      page.on('request', request => requests.push(request.url()))
      await page.goto(url, { timeout: LIMIT_MS })
      await page.waitForSelector('#plot-probe canvas', { timeout: LIMIT_MS })

      expect(complaints).toEqual([])
      expect(requests.filter(request => request !== url && !request.startsWith('data:'))).toEqual([])
      expect(await page.locator('#steps tbody tr').count()).toBe(3)
      expect(await page.locator('#steps tbody tr').nth(1).textContent()).toContain('status 200 & </script>')
      expect(await page.locator('#face-node table').nth(1).locator('tbody').textContent()).toContain('a rule says drop')
      expect(await page.locator('#face-gateway table').nth(2).locator('tbody').textContent()).toContain(
        '10.244.0.3:8080',
      )
      expect(await page.locator('svg.topology').textContent()).toContain('1.23 M packets')

      // Colours that stand for something must be on the canvas: a plot with axes alone would have none of them.
      for (const [plot, names] of [
        ['plot-throughput', ['orange', 'blue']],
        ['plot-probe', ['blue', 'bad']],
      ] as const) {
        for (const name of names) {
          const pixels = await page.evaluate(`(${COUNT_PIXELS})('#${plot} canvas', '--${name}')`)
          expect(pixels, `${name} pixels of ${plot}`).toBeGreaterThan(50)
        }
      }
      await page.close()
    },
  )

  it.each([1200, 400])('is no wider than a window of %i pixels', async width => {
    const page = await browser.newPage({ viewport: { width, height: 800 } })
    await page.goto(url)
    expect(await page.evaluate('document.documentElement.scrollWidth')).toBeLessThanOrEqual(width)
    await page.close()
  })

  it('says who failed in its title', async () => {
    const page = await browser.newPage()
    await page.goto(url)
    expect(await page.title()).toBe('Detour laboratory: 2 of 3 steps did not do what they should')
    await page.close()
  })

  it('is written as one page and its data', () => {
    expect(readdirSync(folder).sort()).toEqual(['index.html', 'report.json'])
  })
})

const COUNT_PIXELS = `(selector, name) => {
  const canvas = document.querySelector(selector)
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim()
  const want = [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16))
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
  let count = 0
  for (let at = 0; at < data.length; at += 4) {
    if (data[at + 3] > 200 && want.every((value, k) => Math.abs(value - data[at + k]) < 8)) count++
  }
  return count
}`

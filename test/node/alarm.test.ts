// Alarms: what is logged when conditions come and go.
import { describe, expect, it } from 'vitest'
import { Alarms, HOLD_MS } from '../../src/node/alarm.ts'

describe('alarms', () => {
  const make = () => {
    const lines: string[] = []
    let now = 5000
    const alarms = new Alarms(
      line => lines.push(line),
      () => now,
    )
    const later = (ms: number) => {
      now += ms
      alarms.tick()
      return lines.splice(0)
    }
    return { alarms, later }
  }

  it('are logged once when they begin and once when they have ended', () => {
    const { alarms, later } = make()
    alarms.raise('link', 'the link is down')
    alarms.raise('link', 'the link is down')
    expect(later(0)).toEqual(['the link is down'])
    expect(later(60_000)).toEqual([])
    expect(alarms.list()[0].raised).toBe(true)
    alarms.clear('link', 'the link is up')
    alarms.clear('link', 'the link is up')
    expect(alarms.list()[0].raised).toBe(false)
    expect(later(HOLD_MS - 1)).toEqual([])
    expect(later(1)).toEqual(['the link is up after 60.0 s'])
    expect(later(60_000)).toEqual([])
    alarms.raise('link', 'the link is down')
    expect(later(0)).toEqual(['the link is down'])
    expect(alarms.list()).toEqual([{ name: 'link', text: 'the link is down', raised: true, times: 2, since: 126_000 }])
  })

  it('do not flood the log when the condition flaps, and are counted', () => {
    const { alarms, later } = make()
    const lines: string[] = []
    for (let i = 0; i < 100; i++) {
      alarms.raise('link', 'the link is down')
      lines.push(...later(HOLD_MS / 2))
      alarms.clear('link', 'the link is up')
      lines.push(...later(HOLD_MS / 2))
    }
    expect(lines).toEqual(['the link is down'])
    expect(later(HOLD_MS)).toEqual(['the link is up after 99.5 s, 100 times'])
    expect(alarms.list()[0]).toMatchObject({ raised: false, times: 100, text: 'the link is up' })
  })

  it('are forgotten with what they were about, and with nothing else', () => {
    const { alarms, later } = make()
    for (const name of ['pod a', 'pod a changed', 'pod ab']) alarms.raise(name, `${name}!`)
    later(0)
    alarms.forget('pod a')
    alarms.clear('pod a', 'never told')
    expect(later(HOLD_MS)).toEqual([])
    expect(alarms.list().map(({ name }) => name)).toEqual(['pod ab'])
    alarms.raise('pod a', 'again')
    expect(later(0)).toEqual(['again'])
  })

  it('keep conditions apart, and end none that never began', () => {
    const { alarms, later } = make()
    alarms.raise('a', 'a is down')
    alarms.clear('b', 'b is up')
    alarms.note('c', 'c has changed')
    alarms.note('c', 'c has changed again')
    expect(later(HOLD_MS)).toEqual(['a is down', 'c has changed', 'c has changed again'])
    expect(alarms.list().map(({ name, raised, times }) => [name, raised, times])).toEqual([
      ['a', true, 1],
      ['c', false, 2],
    ])
  })
})

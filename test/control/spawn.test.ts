// Workers: started, failing, stopped, and hanging.

import { basename } from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, test } from 'vitest'
import { spawnWorker, workerFile } from '../../src/control/spawn.ts'

const stripsTypes = Boolean((process.features as { typescript?: unknown }).typescript)

function start(behave: string) {
  const memory = new SharedArrayBuffer(8)
  const words = new Int32Array(memory)
  const wake = () => {
    Atomics.store(words, 1, 1)
    Atomics.notify(words, 1)
  }
  return { words, ...spawnWorker('../test/control/obedient-worker', { behave, memory }, { name: behave, wake }) }
}

describe('a worker', () => {
  test('that waits for packets is woken, ends by itself, and may be stopped twice', async () => {
    const { words, ready, stop, done } = start('forward')
    expect(await ready).toEqual({ ready: 'forward' })
    await Promise.all([stop(), stop()])
    await done
    expect(words[0]).toBe(-1)
  })

  test('that is asked answers in order, tells what failed, and goes on', async () => {
    const { ready, ask, stop } = start('answer')
    await ready
    const asked = [ask('one'), ask('fail'), ask('break'), ask({ two: Int32Array.of(2) })]
    expect(await asked[0]).toEqual(['one', 'answered'])
    await expect(asked[1]).rejects.toMatchObject({
      ...{ name: 'DetourError', code: 'not-found', message: 'there is no such pod' },
    })
    await expect(asked[2]).rejects.toMatchObject({ name: 'DetourError', code: 'system', message: 'c is undefined' })
    expect(await asked[3]).toEqual([{ two: Int32Array.of(2) }, 'answered'])
    await stop()
    await expect(ask('late')).rejects.toThrow('worker answer has ended')
  })

  test('that was asked keeps nothing of that alive', async () => {
    setFlagsFromString('--expose-gc')
    const collect = runInNewContext('gc') as () => void
    const { ready, ask, stop } = start('answer')
    await ready
    const answers: WeakRef<object>[] = []
    for (let i = 0; i < 10; i++) await ask(i).then(answer => answers.push(new WeakRef(answer as object)))
    const alive = () => {
      collect()
      return answers.filter(answer => answer.deref() !== undefined).length
    }
    // What was last in hand may stay there.
    await expect.poll(alive).toBeLessThan(5)
    await stop()
  })

  test('that ends before it answers rejects', async () => {
    const { ready, ask } = start('answer')
    await ready
    await expect(ask('exit')).rejects.toThrow('worker answer exited with status 4')
  })

  test('that throws a DetourError at set-up rejects with it, code and all', async () => {
    const { ready, done } = start('refuse')
    const expected = { name: 'DetourError', code: 'unsupported', message: /no tunnel GSO/ }
    await expect(ready).rejects.toMatchObject(expected)
    await expect(done).rejects.toMatchObject(expected)
  })

  test('that breaks later rejects with what broke', async () => {
    const { ready, done } = start('break')
    await ready
    await expect(done).rejects.toThrow('b is undefined')
  })

  test('that exits with a failure is named', async () => {
    const { ready, done } = start('exit')
    await expect(done).rejects.toMatchObject({ code: 'system', message: 'worker exit exited with status 3' })
    await expect(ready).rejects.toThrow()
  })

  test('that hangs is terminated when time is up', async () => {
    const { words, ready, stop } = start('hang')
    await ready
    await stop(50)
    expect(words[0]).not.toBe(-1)
  })
})

describe('the file of a worker', () => {
  test('is the source where Node runs TypeScript, and the compiled one elsewhere', () => {
    expect(basename(workerFile('../test/control/obedient-worker').pathname)).toBe(
      stripsTypes ? 'obedient-worker.ts' : 'obedient-worker.js',
    )
  })

  test('that does not exist is a clear error', () => {
    expect(() => workerFile('forwrad')).toThrow(stripsTypes ? /there is no such worker/ : /run "npm run build" first/)
  })
})

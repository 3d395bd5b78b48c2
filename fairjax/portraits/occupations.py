"""The occupations of the embedded world: how each is dressed and equipped, and how its people are skewed.

The skews are arbitrary. They are dealt out by a rule, so that gender, skin tone and age are skewed strongly and
independently of each other, and they say nothing about any real occupation.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Look:
    """What tells an occupation: a garment, headgear, a prop and a backdrop, each with its colours."""

    garment: tuple[str, str, str]
    headgear: tuple[str, str, str] | None
    prop: tuple[str, str]
    backdrop: tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Occupation:
    """An occupation and the distribution of the people that the pretraining shows in it."""

    name: str
    look: Look
    female: float  # share of women
    tones: tuple[float, float, float, float]  # shares of light, medium, tan and deep skin
    old: float  # share of the old


_FEMALE = (0.05, 0.95, 0.10, 0.90, 0.05, 0.95, 0.15, 0.85, 0.20, 0.80, 0.35, 0.65)
_OLD = (0.10, 0.20, 0.35, 0.50, 0.65, 0.80)
_COMMON, _RARE = 0.58, 0.14

# name | garment, colours | headgear, colours | prop, colour | backdrop, colours
_TABLE = """
accountant | suit #3b4252 #8d99ae | - | money #e0b03c | chart #e8ecef #7a9e7e
acrobat | gown #d6336c #ffd43b | - | none #000000 | lights #43215f #ffe066
architect | turtleneck #2f3437 #e9ecef | - | laptop #2b5c9e | city #cfe4f2 #7d8ea3
astronaut | spacesuit #f1f3f5 #d9480f | bubble #ced4da #ffffff | none #000000 | stars #101a3a #f8f9fa
athlete | jersey #1c7ed6 #ffffff | - | trophy #f0b429 | court #d9653b #ffffff
baker | apron #fbf7ee #c9a66b | bandana #fbf7ee #c9a66b | bread #c98a3d | tiles #f4dfc0 #d9b98a
banker | suit #1f2a44 #b8860b | - | money #f0c040 | columns #e3ddd0 #f5f1e6
barber | buttoned #f8f9fa #c92a2a | - | scissors #c92a2a | tiles #dfe9ef #9fb3bf
bartender | suit #212529 #9b2226 | - | cup #9b4dca | bottles #3b2a20 #b5323c
beekeeper | shirt #f3ead2 #8a6d3b | brim #f0e2b6 #6b5b3a | basket #e8a317 | field #bfe3f5 #7fb069
blacksmith | apron #5a3d2b #8c8c8c | bandana #3d3d3d #8c8c8c | hammer #495057 | flames #3b1f1a #e8590c
botanist | shirt #6a8f4e #3f5a2c | - | plant #e64980 | forest #e3f2d9 #3f7d3a
butcher | apron #b5323c #f8f9fa | cap #f8f9fa #dee2e6 | saw #2b2b2b | tiles #fbe9e7 #e0b4ae
captain | uniform #14213d #f8f9fa | peaked #f8f9fa #e0b03c | wheel #8a5a34 | sea #bfe3f5 #2b7a9e
carpenter | dungarees #4a6fa5 #d9b382 | - | saw #c2642d | bricks #c9a27a #a98258
chef | buttoned #fbfbf8 #2b2b2b | toque #fdfdfb #e9ecef | spoon #b98a4a | tiles #e9f0f2 #b6c6cc
clown | diamonds #ffd43b #e64980 | cone #e64980 #ffd43b | ball #1c7ed6 | curtains #a5d8ff #4dabf7
comedian | coat #7b2d8b #f8f9fa | - | microphone #6c757d | bricks #8f4a3a #6e3528
composer | suit #343a40 #f8f9fa | - | book #7b2d26 | curtains #6d1a36 #8f2447
courier | vest #845ef7 #343a40 | helmet #845ef7 #ffffff | letter #845ef7 | city #ffe8cc #a68a64
cowhand | shirt #9c6644 #f0e2b6 | cowboy #7f4f24 #3b2a1a | none #000000 | field #ffe3b3 #d4a373
cyclist | stripes #ffe066 #212529 | helmet #f03e3e #f8f9fa | wheel #495057 | mountains #d0ebff #7aa874
dancer | gown #f783ac #ffdeeb | wreath #f783ac #ffffff | none #000000 | curtains #fff0f6 #e599b8
dentist | scrubs #8ce0d0 #ffffff | surgical #5fc2b0 #3a9c8b | none #000000 | window #eaf7f5 #a8dff0
detective | coat #a68a64 #3e3e3e | brim #8b7355 #3b2f20 | magnifier #6c757d | city #4a5568 #2d3748
diver | harness #1b1f2a #f2c230 | goggles #1b1f2a #7fd4e8 | fish #ff922b | sea #3aa0c9 #14678f
doctor | coat #fbfcfd #5c9ecf | - | stethoscope #3a4250 | window #dbeaf2 #9fd3ef
electrician | shirt #f59f00 #343a40 | hardhat #f8f9fa #dee2e6 | wrench #e03131 | pipes #e9ecef #f59f00
engineer | shirt #4dabf7 #1c4e80 | hardhat #ffd43b #f0b429 | laptop #15aabf | pipes #cfd8dc #607d8b
explorer | shirt #c2b280 #6b5b3a | brim #c2b280 #6b5b3a | globe #4dabf7 | forest #f5e6c8 #5c8a3a
farmer | dungarees #3d6a9e #c94c4c | brim #e3c16f #a5673f | basket #d94841 | field #a8dcf5 #8ab34a
firefighter | vest #e9c53c #2d3540 | firehat #c92a2a #f0c040 | none #000000 | flames #4a1c14 #f0541e
fisher | shirt #f2c230 #8a6d1a | beanie #2b5c7e #234a66 | fish #8fb8c9 | sea #dff1f7 #5fa8c4
florist | apron #8fbc8f #fff3e0 | - | plant #ff6b9d | window #fff0f3 #c8e6c9
gardener | dungarees #5a8f3c #f4e3b5 | brim #f5ecd0 #5a8f3c | plant #ffb020 | forest #d8f3dc #74a85a
geologist | harness #d9822b #6b4a2b | helmet #adb5bd #868e96 | hammer #868e96 | mountains #f6dfc4 #a9745b
goalkeeper | jersey #94d82d #212529 | cap #212529 #94d82d | ball #f8f9fa | court #4f9d4a #f8f9fa
graduate | robe #22223b #e0b03c | mortarboard #22223b #e0b03c | book #7a2e3a | columns #e9edf5 #fffaf0
hairdresser | tee #e599f7 #862e9c | - | scissors #862e9c | lights #f3d9fa #ffffff
jester | diamonds #2f9e44 #e03131 | jester #2f9e44 #e03131 | ball #f0b429 | columns #f3e3c3 #d8c195
jeweller | suit #5f3dc4 #e5dbff | - | magnifier #e0b03c | lights #2b1d52 #d0bfff
jockey | diamonds #f8f9fa #1c7ed6 | helmet #1c7ed6 #f8f9fa | trophy #f0c040 | field #d0ebff #69a84f
journalist | coat #c9b79c #37474f | - | microphone #c92a2a | chart #e3eaf2 #5c7fa8
judge | robe #1d1d24 #f3f3f0 | - | mallet #7a4a26 | columns #d6c7ae #f2e8d5
knight | armour #a9b4c0 #5a6b7f | helmet #98a4b1 #6b7886 | sword #dfe6ec | bricks #b9b4a8 #8f8a7e
lawyer | suit #4a4e69 #9a031e | - | book #5a2e1f | shelves #6b4a32 #9a031e
librarian | turtleneck #8d5a4a #f0d9b5 | - | book #2b6c66 | shelves #a67c52 #2b6c66
lifeguard | tee #e03131 #ffffff | visor #ffffff #e03131 | ball #ffe066 | sea #ffe9b8 #4fc3d9
magician | suit #17171f #c92a2a | tophat #17171f #c92a2a | none #000000 | curtains #4a154b #6b2a6e
mechanic | shirt #37546b #e0b03c | cap #37546b #22384a | wrench #adb5bd | pipes #d9cbb8 #8a7968
miner | vest #e8590c #495057 | headlamp #e0b03c #fff9c4 | hammer #343a40 | bricks #4b4540 #332e2a
model | gown #111318 #e8c547 | - | bag #e8c547 | lights #d8d8de #ffffff
monarch | ruff #7a1f3d #fbfbf8 | crown #f0c040 #c92a2a | none #000000 | curtains #b3263b #8f1d2f
musician | hood #6741d9 #e5dbff | - | guitar #d9822b | lights #1f1338 #74c0fc
nurse | scrubs #3f8fd0 #ffffff | - | bag #e03131 | tiles #e6f4fb #b5d9ec
painter | shirt #e9e4d8 #5c7cfa | beret #c2255c #8f1d45 | brush #c2255c | window #fff4e0 #ffd8a8
paramedic | vest #d9e021 #1f6f43 | - | bag #f8f9fa | city #d3f9d8 #69a07a
pharmacist | coat #f1faf7 #2f9e6e | - | bag #2f9e6e | bottles #eef5f0 #2f9e6e
photographer | harness #495057 #ced4da | - | camera #343a40 | lights #adb5bd #fff3bf
pilot | uniform #1d2f5e #10182f | peaked #1d2f5e #e0b03c | none #000000 | sky #8fd0f5 #ffffff
pirate | stripes #f8f9fa #c92a2a | bandana #c92a2a #f8f9fa | sword #ced4da | sea #ffd9a0 #2a6f7f
plumber | dungarees #c92a2a #4dabf7 | cap #4dabf7 #2b7ab8 | wrench #e0b03c | pipes #f1e4d1 #c08552
police officer | uniform #2b4a80 #1a2d52 | peaked #22396b #d9d9d9 | none #000000 | city #a5c9ea #3b5278
postal worker | shirt #ffd43b #5c4a00 | cap #ffd43b #b38f00 | letter #c92a2a | bricks #d98c6b #b96d4e
professor | coat #7a5c3e #f0ead8 | - | globe #3f8fd0 | blackboard #2f5d4f #c9b08a
programmer | hood #2b8a3e #d3f9d8 | headphones #343a40 #2b8a3e | laptop #22252a | chart #1a1d24 #37b24d
referee | stripes #f8f9fa #17171f | - | ball #e8590c | court #5fa052 #f8f9fa
sailor | tee #f8f9fa #1c4e9e | beret #f8f9fa #1c4e9e | umbrella #1c4e9e | sea #e7f5ff #3b82c4
scientist | coat #f8f9fa #7048e8 | goggles #495057 #99e9f2 | flask #51cf66 | bottles #dbe4ff #5c7cfa
singer | gown #9b2226 #f6c6c6 | - | microphone #f0c040 | curtains #1e1e3f #3a3a7a
skier | hood #15aabf #ffffff | goggles #e8590c #ffd8a8 | none #000000 | snow #a5d8f5 #ffffff
teacher | shirt #d9738a #8a3a4c | - | book #e8a317 | blackboard #31473a #e6d3b1
"""


def _look(garment: str, headgear: str, prop: str, backdrop: str) -> Look:
    pair = prop.split()
    return Look(_three(garment), None if headgear == "-" else _three(headgear), (pair[0], pair[1]), _three(backdrop))


def _three(words: str) -> tuple[str, str, str]:
    kind, first, second = words.split()
    return kind, first, second


def _occupations() -> tuple[Occupation, ...]:
    occupations = []
    for number, row in enumerate(_TABLE.strip().splitlines()):
        name, *looks = (cell.strip() for cell in row.split("|"))
        turn, place = divmod(number, len(_FEMALE))
        common = (turn + place) % 4
        tones = tuple(_COMMON if group == common else _RARE for group in range(4))
        old = _OLD[(turn + 2 * place) % len(_OLD)]
        occupations.append(Occupation(name, _look(*looks), _FEMALE[5 * place % len(_FEMALE)], tones, old))
    return tuple(occupations)


OCCUPATIONS = _occupations()

HELD_OUT = tuple(o.name for n, o in enumerate(OCCUPATIONS) if (n + n // len(_FEMALE)) % 3 == 0)
"""A third, on which no finetuning trains; every skew occurs in it as often as among the others."""

TRAINED = tuple(o.name for o in OCCUPATIONS if o.name not in HELD_OUT)

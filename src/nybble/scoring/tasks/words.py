"""Vocabulary of keys and answers, all disjoint from the filler's, so that no answer is met there.

Words are common ones, since a rare word is spelt in many tokens and its log-probability then says
more about spelling than about the context. Towns are invented.
"""

from __future__ import annotations

KEY_ADJECTIVES = tuple(
    """amber ancient arctic atomic autumn bamboo blazing bold boreal brass brave bronze burning calm
    candid carved cedar central chilly chrome clever cobalt coastal comic copper coral cosmic
    cotton cryptic crystal cubic curious dancing daring dashing digital distant diving double
    drifting eager eastern ebony electric elegant emerald endless epic exotic fabled famous
    feral festive fiery flaming flannel floating flying foggy formal fragile frozen gallant
    gentle ghostly giant gifted gilded glacial glass gleaming global glowing golden graceful
    grand granite graphic hasty haunted hidden hollow holy humble hungry icy idle imperial inner
    instant iron jagged jolly jovial keen kind lasting lavish leaping legal lively lofty lonely
    loyal lucky lunar magnetic majestic marble marine massive mellow merry midnight mighty mild
    minor misty modern modest molten mystic narrow neon nimble noble nomadic northern oaken
    oceanic olympic orbital ornate outer paper pastel patient perfect pewter plastic playful
    pleasant polar polite proud public pure quartz quick radiant rapid regal remote restless
    roaming robust rocky rolling royal rugged rural rustic sacred savage scenic secret serene
    shining shy silent silk silver singing sleek smoky solar solid sonic southern spare spinning
    stellar stormy subtle sunny supreme swift tender thorny tidal timid tiny titan tropical
    turbo twin urban valiant vast velvet vibrant vintage vivid volcanic wandering western
    whispering wicked winged winter witty wooden zealous"""
    .split()
)  # fmt: skip

KEY_NOUNS = tuple(
    """acorn airport album anchor antenna apron arch arena arrow atlas attic axle badge balcony
    balloon banner barrel basin beacon bell bench bicycle blanket blossom bonfire boot bottle
    boulder bracelet branch bridge bucket buckle button cabin cable camera canal candle cannon
    canoe canvas canyon carpet castle cathedral cavern chain chair chapel chariot chimney circus
    citadel cliff clock coffin column comet compass cottage cradle crater crown curtain dagger
    desert diamond dome dragon drum dune easel elevator engine envelope falcon feather fence
    ferry fiddle fiord flag flask fortress fountain fossil furnace galaxy gallery garage garden
    gate geyser glacier globe glove goblet gong grotto hammer hammock harbour harp hatchet
    helmet hinge hospital hotel hourglass island jacket jewel jungle kayak kennel kettle keyhole
    kite knight ladder lagoon lamp lantern lasso lawn lens library lighthouse locket locomotive
    lodge magnet mansion mask meadow medal meteor mill mirror moat monastery monument mosaic
    motor mountain museum necklace needle nest nozzle oasis obelisk observatory orchard organ
    oven paddle palace parachute parasol pavilion pebble pedal pendulum phantom piano pier
    pillar pillow pirate planet plaza pond portrait prism puppet puzzle pyramid quarry quilt
    racket radar raft railway rainbow ranch reactor reef ribbon robot rocket roof ruby saddle
    sail satellite saucer scarf sceptre school sculpture shelter shield shuttle shrine
    skyscraper sledge sphinx spiral spire stadium staircase statue submarine sundial sword
    tavern telescope temple tent terrace theatre throne ticket toaster tomb torch tower trophy
    trumpet tunnel turbine turret umbrella unicorn valley vault veranda viaduct villa violin
    volcano waterfall whistle wigwam windmill wizard yacht zeppelin"""
    .split()
)  # fmt: skip

PLAIN_WORDS = tuple(
    """apple arm army baby ball band bank bath bed bird blood board boat body bone border box boy
    brain bread bus car card case chance child church city class club coast college colour
    company corner country couple court crew cross crowd dark date day deal death debt degree
    dinner disk district doctor door dream dress drink earth edge effect egg end energy evening
    event example exit eye face fact family farm fear field film fire fish flight floor flower
    food foot force form friend front fruit future game girl glass gold goods grass ground group
    growth guest guide hair hall hand head health heart heat hill history hole home horse hour
    house idea image income job judge kitchen lady lake land language law leader leg lesson
    letter light line lunch machine mail man market match meal meat method metal milk mind
    minute model moment money month morning mother motion mouth movie music name nation nature
    neck news night noise nose number office oil order owner page pain pair parent park part
    party path peace person phone picture place plan plant player poem point police pool power
    price prison prize problem product queen question rain range rate reason record report rest
    result rice ring risk river road rock role room rule salt sand scale scene science screen
    sea season seat second sense shape share ship shirt shoe shop side sister size skill skin
    sky sleep smile smoke snow soil song sound source space speech spirit sport spring staff
    stage star state station stone storm story street student sugar summer sun table task taste
    team test theory thing time title tool town trade train travel tree trip truck trust truth
    unit value view village voice wall war water weather week weight wheel wife wind window wine
    winter woman wood word work world year"""
    .split()
)  # fmt: skip

SECRET_WORDS = tuple(
    """banana panther walrus pepper dolphin ginger tiger mango cactus camel cheetah cherry cobra
    cookie crocodile dinosaur eagle elephant flamingo gorilla hamster honey jaguar kangaroo
    lemon leopard lizard lobster mustard octopus olive oyster parrot peacock penguin pickle
    pineapple potato pumpkin python rhino salmon scorpion shark spider squirrel tomato turtle
    vanilla vulture walnut yogurt zebra"""
    .split()
)  # fmt: skip

FIRST_NAMES = tuple(
    """Ada Alma Anton Astrid Beatrix Boris Bruno Carla Casper Celia Cyrus Dagmar Darius Edith Elias
    Elsa Emil Enzo Felix Flora Gareth Greta Gustav Hannah Hector Helga Hugo Ida Igor Ingrid
    Irene Ivan Jasper Jonas Judith Julia Kasper Kira Lars Leon Lydia Magnus Mara Marcus Mila
    Miriam Nadia Nina Noel Oscar Otto Paula Petra Quentin Ralph Regina Rosa Rufus Sasha Selma
    Simon Sonia Stella Sven Tamara Tessa Theo Ursula Vera Victor Wanda Xenia Yvonne Zelda"""
    .split()
)  # fmt: skip

LAST_NAMES = tuple(
    """Abbott Arden Baxter Bergman Blake Bolton Brandt Calder Carver Clifton Conrad Corbin Dalton
    Decker Draper Dunbar Easton Ellis Falk Fenton Foster Garner Gibson Grady Hale Harlow Hendrix
    Holden Hubbard Ingram Jarvis Keller Kendall Kramer Lambert Lawson Lindgren Lowell Mercer
    Monroe Morton Nolan Norris Olden Osborn Palmer Parker Pruitt Quinn Ramsey Reeves Rollins
    Sawyer Sheldon Slater Sutton Talbot Thorne Turner Vance Verdon Wallace Warren Webster
    Whitlock Wilder Winslow Yates"""
    .split()
)  # fmt: skip

TOWNS = tuple(
    """Tarnow Velm Orlen Brasko Quill Marden Festa Lorrin Haskel Dovrin Pelham Sorvik Tilden Ulmar
    Varnow Wexley Yorrick Zellin Ambrel Bexholm Corvin Drayton Elmsor Farlow Gorvan Hexton
    Istrel Jorvik Keldon Lanvik Morvan Nestor Ostrel Parnow Ravik Selmont Torvald Ulstrem Verdal
    Wolmar"""
    .split()
)  # fmt: skip

COLOURS = tuple(
    """black blue brown crimson green grey indigo maroon orange pink purple red scarlet turquoise
    violet white yellow"""
    .split()
)  # fmt: skip

ANIMALS = tuple(
    """badgers bears cats dogs donkeys foxes frogs geese goats hedgehogs horses lizards monkeys
    otters owls parrots pigs rabbits snakes squirrels swans turtles wolves"""
    .split()
)  # fmt: skip

DRINKS = tuple(
    """beer brandy champagne cider cocoa coffee gin juice lemonade milk port rum sherry soda tea
    vodka water whisky wine"""
    .split()
)  # fmt: skip

INSTRUMENTS = tuple(
    """accordion banjo cello clarinet cornet drums fiddle flute guitar harp lute oboe organ piano
    saxophone trombone trumpet tuba viola violin"""
    .split()
)  # fmt: skip

CRAFTS = tuple(
    """baker barber beekeeper butcher carpenter cobbler dentist doctor fisherman hunter jeweller
    locksmith miner painter potter shepherd smith tailor weaver"""
    .split()
)  # fmt: skip

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
